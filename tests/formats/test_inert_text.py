"""Text that does nothing where it is shown: what becomes of control characters and of secrets."""

from __future__ import annotations

import logging

import pytest

from neuronllm_eval.cli.main import _InertFormatter
from neuronllm_eval.formats.inert_text import SECRETS, inert, redacted, without_secrets

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain größe 漢字\n\ttwo", "plain größe 漢字\n\ttwo"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("\x9b31m c1", "\\x9b31m c1"),
        ("right\u202eto left\u2066", "right\\u202eto left\\u2066"),
        ("over\rwritten\x08", "over\\rwritten\\x08"),
        ("no-break\xa0space", "no-break\xa0space"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_control_characters_are_shown(text, shown):
    assert inert(text) == shown


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        ("token=x", "token=..."),
        (
            "--model_args=pretrained=m,token=x,dtype=y",
            "--model_args=pretrained=m,token=...,dtype=y",
        ),
        ("pretrained=m api_key=x dtype=y", "pretrained=m api_key=... dtype=y"),
        ('{"pretrained": "m", "token": "x, \\"y"}', '{"pretrained": "m", "token": ...}'),
        ("add_bos_token=True,tokenizer=x", "add_bos_token=True,tokenizer=x"),
    ],
)
def test_a_redacted(word, seen):
    assert redacted(word) == seen


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{'pretrained': 'm', 'token': 'x y'}", "{'pretrained': 'm', 'token': ...}"),
        ("TOKEN=x", "TOKEN=..."),
        ("https://user:pass@host/a@b", "https://...@host/a@b"),
        ("hf://user/repo@main/task", "hf://user/repo@main/task"),
        (f"401 for {TOKEN}.", "401 for ...."),
        ("tokens: 5, eos_token=x, tokenizer=y", "tokens: 5, eos_token=x, tokenizer=y"),
    ],
)
def test_secrets_within_messages(text, shown):
    assert redacted(text) == shown


def test_the_token_of_the_environment_is_in_no_message(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-odd-token")
    assert redacted("refused: Bearer an-odd-token") == "refused: Bearer ..."
    monkeypatch.setenv("HF_TOKEN", "a")  # would hide letters
    assert redacted("a b a") == "a b a"


def test_arguments_lose_secrets_at_any_depth_and_nothing_else():
    values = {"pretrained": "m", "n": 1.5, "list": [1, {"x": None}], "flag": True}
    assert without_secrets(values) == values
    secret = {**values, **dict.fromkeys(SECRETS, "s"), "Token": "s", "in": [{"api_key": "s"}]}
    assert without_secrets(secret) == {**values, "in": [{}]}
    assert without_secrets({"url": "https://u:p@h"}) == {"url": "https://...@h"}


def test_log_lines_of_any_library_are_inert():
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s \x1b[2J", ("token=s3cret",), None)
    assert _InertFormatter("%(message)s").format(record) == "token=... \\x1b[2J"
