"""The packaged text as windows of tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from neuronllm_eval.harness.plain_text import TextWindow, plain_text, text_windows
from tests.fixtures.harness import harness_model, model_dir


def fake_lm(max_length: int) -> SimpleNamespace:
    """A model whose tokens are letters, and whose tokenizer adds 1 unless it is told not to."""

    def tok_encode(text, add_special_tokens=None):
        return [*([] if add_special_tokens is False else [1]), *map(ord, text)]

    return SimpleNamespace(tok_encode=tok_encode, prefix_token_id=1, max_length=max_length)


def test_one_window_behind_one_prefix_token():
    (window,) = text_windows(fake_lm(100), "abc")
    assert window == TextWindow((1, ord("a"), ord("b")), (ord("a"), ord("b"), ord("c")))
    assert window.n_tokens == 3


@pytest.mark.parametrize("max_length", [1, 3, 4, 7, 8, 100])
def test_every_token_is_scored_once_within_the_context(max_length):
    text = "abcdefg"
    windows = text_windows(fake_lm(max_length), text)
    assert [token for window in windows for token in window.scored] == list(map(ord, text))
    whole = [1, *map(ord, text)]
    end = 0
    for window in windows:
        assert len(window.tokens) <= max_length
        end += len(window.scored)
        # What is read ends before the last scored token, as in the text.
        assert list(window.tokens) == whole[end - len(window.tokens) : end]


def test_the_text_has_what_its_page_says():
    text = plain_text()
    assert text == text.strip()
    assert (len(text.split()), text.count("\n\n")) == (204, 4)  # five paragraphs
    lm = harness_model(model_dir())
    scored = [token for window in text_windows(lm, text) for token in window.scored]
    assert lm.tokenizer.decode(scored).split() == text.split()
