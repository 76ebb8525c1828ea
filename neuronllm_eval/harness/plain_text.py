"""A plain text that comes with the package, as windows of tokens, for its perplexity.

The text, `plain_text.txt`, was written for this package and is nobody's benchmark. It is tokenised
and cut as by lm_eval's `loglikelihood_rolling`: behind one prefix token (BOS, else EOS), without a
chat template, in as few windows as the model's context allows, so that every token counts once.
Other than there, a BOS that a tokenizer adds by itself is left out: the prefix token stands for it,
and no model is asked to predict it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window


@dataclass(frozen=True)
class TextWindow:
    """A part of the text that the model reads in one pass.

    Attributes:
        tokens: token ids that it reads.
        scored: token ids that it predicts, the last behind all of `tokens`.
    """

    tokens: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens that are read."""
        return len(self.tokens)


def plain_text() -> str:
    """The text, without a line break at its end."""
    file = resources.files("neuronllm_eval.harness") / "plain_text.txt"
    return file.read_text(encoding="utf-8").strip()


def text_windows(lm: HFLM, text: str) -> tuple[TextWindow, ...]:
    """A text as the model reads it; every token is scored in one window."""
    windows = get_rolling_token_windows(
        token_list=lm.tok_encode(text, add_special_tokens=False),
        prefix_token=lm.prefix_token_id,
        max_seq_len=lm.max_length,
        context_len=1,
    )
    return tuple(
        TextWindow((*context, *scored[:-1]), tuple(scored))
        for context, scored in map(make_disjoint_window, windows)
    )
