"""Settings as provenance tables show them."""

from __future__ import annotations

import pytest

from neuronllm_eval.reporting.neuron_tables import settings_text


def test_settings_are_pairs():
    text = '{"n_proxies": 3, "letter_style": "A.", "n_options": null}'
    assert settings_text(text) == "n_proxies=3, letter_style=A., n_options=null"
    assert settings_text("{}") == ""


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "3"])
def test_what_is_no_object_is_shown_unchanged(text):
    assert settings_text(text) == text
