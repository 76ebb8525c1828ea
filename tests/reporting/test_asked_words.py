"""Settings in words, as provenance tables show them."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.reporting.neuron_tables import asked_words, method_words


def test_how_an_aqua_task_was_asked():
    assert asked_words(json.dumps(asdict(AquaSettings()), sort_keys=True)) == (
        "3 proxies of each question; option orders: auto; letter style A.; original options; no "
        "distractors; malformed docs: skip; 8 questions reserved for demonstrations; at most 10000 "
        "selection docs; seed 0"
    )
    changed = json.dumps({"n_options": 5, "distractors": "length", "odd": None, "name": "x"})
    assert asked_words(changed) == "5 options; distractors: length; odd=null; name=x"


def test_a_method_and_its_settings():
    assert method_words("ace", "{}") == "ace"
    assert method_words("kn", '{"share": 0.2, "of": "all"}') == "kn, share=0.2, of=all"


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "3"])
def test_what_is_no_object_is_shown_as_it_is(text):
    assert asked_words(text) == text
    assert method_words("ace", text) == f"ace, {text}"


def test_of_nothing_nothing_is_said():
    assert asked_words("{}") == ""
