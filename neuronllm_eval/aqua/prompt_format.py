"""How a lettered question is written out. Pure.

The paper's text was not available where this was written: the role and rule line, one
demonstration and `A.` before each option are our reading of its setting.
"""

from __future__ import annotations

from neuronllm_eval.aqua.proxies import Proxy
from neuronllm_eval.errors import UsageError

# By the name of the style, what stands before an option.
LETTER_STYLES: dict[str, str] = {"A.": "{}. ", "A)": "{}) ", "(A)": "({}) ", "A:": "{}: "}
ROLE_LINE = (
    "You are a careful expert. Each question has one right option; answer with its letter.\n\n"
)
QUESTION_CUE = "Question: "
ANSWER_CUE = "Answer:"


def require_letter_style(style: str) -> None:
    """Raise UsageError unless there is such a style."""
    if not isinstance(style, str) or style not in LETTER_STYLES:
        raise UsageError(
            f"letter_style is {style!r}",
            expected=" or ".join(LETTER_STYLES),
            remedy="use A., the default; the answer is the bare letter in every style",
        )


def format_question(proxy: Proxy, letter_style: str = "A.") -> str:
    """The prompt of one question: passage, stem, one line for each option, and `Answer:`.

    Args:
        proxy: the question, with its options in the order in which they are shown.
        letter_style: a key of `LETTER_STYLES`.

    Raises:
        UsageError: there is no such style.
    """
    require_letter_style(letter_style)
    before = LETTER_STYLES[letter_style]
    lines = [proxy.passage] if proxy.passage else []
    lines.append(f"{QUESTION_CUE}{proxy.question}")
    lines += [
        before.format(letter) + choice
        for letter, choice in zip(proxy.letters, proxy.choices, strict=True)
    ]
    lines.append(ANSWER_CUE)
    return "\n".join(lines)
