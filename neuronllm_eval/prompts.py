"""Tokenised prompts and the questions they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neuronllm_eval.errors import DocError

# Positions whose logits decide between the options: the last context token and, for options of
# several tokens, the option's tokens but the last. The paper's setting.
SCORED = "scored"
# Every position of the context and of the options, as an exported adapter acts.
ALL = "all"
POSITIONS = (SCORED, ALL)
# What options are compared by: the log-likelihood of their tokens (lm_eval's `acc`), or that
# divided by the length of their text in characters (`acc_norm`) or in bytes (`acc_bytes`).
SUM, PER_CHARACTER, PER_BYTE = "sum", "per_character", "per_byte"
OPTION_SCORES = (SUM, PER_CHARACTER, PER_BYTE)
# Why a doc is excluded whose log-likelihoods or gradients are not finite.
NOT_FINITE = "NaN or infinite numbers"


@dataclass(frozen=True)
class Prompt:
    """One prompt and its options, letters or texts, as the harness tokenises them.

    Attributes:
        doc_id: index of the doc in the harness task (names the prompt in errors).
        context: token ids up to and including the last one that all options share; its last
            token is the first scored position.
        options: per option the token ids that follow the context.
        gold: index of the gold option.
        n_shared: how many tokens at the end of `context` are the options' own, shared by all.
        lengths: per option what its log-likelihood is divided by before options are compared;
            empty where log-likelihoods are compared as they are.
        priors: per option log-nats that `calibrated_cross_entropy` takes off what options are
            compared by; empty for none.
    """

    doc_id: int
    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    gold: int
    n_shared: int = 0
    lengths: tuple[float, ...] = ()
    priors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.options) < 2 or any(len(option) == 0 for option in self.options):
            raise DocError(
                f"doc {self.doc_id} has options of {[len(o) for o in self.options]} tokens",
                expected="two or more options of at least one token each",
                remedy="check doc_to_choice and the tokenizer",
                reason="fewer than 2 options"
                if len(self.options) < 2
                else "an option without tokens",
            )
        if len(set(self.options)) < len(self.options):
            raise DocError(
                f"doc {self.doc_id} has options that become the same tokens {self.options}",
                expected="letters that the tokenizer can tell apart",
                remedy="use another target_delimiter",
                reason="options that become the same tokens",
            )
        if self.lengths and (len(self.lengths) != len(self.options) or min(self.lengths) <= 0):
            raise DocError(
                f"doc {self.doc_id} has {len(self.options)} options of lengths {self.lengths}",
                expected="a length above 0 for each option",
                remedy="check doc_to_choice, or pass --option_scores sum",
                reason="an option without text",
            )

    @property
    def one_token_options(self) -> bool:
        """Whether every option is a single token, so that one position decides all of them."""
        return all(len(option) == 1 for option in self.options)

    @property
    def counts_shared(self) -> bool:
        """Whether the tokens that all options share make a difference when options are compared.

        Divided by different lengths, their log-likelihood does not cancel out.
        """
        return bool(self.lengths) and self.n_shared > 0

    @property
    def compares_logits(self) -> bool:
        """Whether options of one token each compare by their logits as by log-likelihoods."""
        return len(set(self.lengths)) <= 1

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest sequence that the model reads to score every option."""
        return len(self.context) + max(len(option) for option in self.options) - 1


def shared_leading_tokens(options: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all options share, so that each has at least one more.

    They belong to the context: the softmax over the options does not depend on them, unless
    log-likelihoods are divided by lengths (`Prompt.counts_shared`).
    """
    shortest = min(len(option) for option in options)
    n_shared = 0
    while n_shared < shortest - 1 and len({option[n_shared] for option in options}) == 1:
        n_shared += 1
    return n_shared


@dataclass(frozen=True)
class Question:
    """One original doc of a benchmark and its proxies: prompts with its options shuffled (AQUA),
    or with other demonstrations or wordings."""

    question_id: str
    prompts: tuple[Prompt, ...]


def with_priors(questions: Sequence[Question], priors: Sequence[float]) -> tuple[Question, ...]:
    """The questions with these priors in their prompts, as they are if there are none.

    Args:
        questions: with at most as many options as there are priors.
        priors: [options] log-nats; see `Prompt.priors`.
    """
    if not priors:
        return tuple(questions)
    return tuple(
        replace(
            question,
            prompts=tuple(
                replace(prompt, priors=tuple(priors[: len(prompt.options)]))
                for prompt in question.prompts
            ),
        )
        for question in questions
    )
