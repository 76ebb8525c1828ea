"""How a benchmark is turned into an AQUA task: the settings of YAML and command line. Pure."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuronllm_eval.aqua.distractors import DISTRACTORS
from neuronllm_eval.aqua.prompt_format import require_letter_style
from neuronllm_eval.aqua.proxies import LETTERS, ORDERS, require_n_proxies
from neuronllm_eval.errors import UsageError

# Before the name of a harness task whose AQUA form is meant.
PREFIX = "aqua:"


ON_BAD_DOC = ("skip", "fail")
ORDER_SETTINGS = ("auto", *ORDERS)


@dataclass(frozen=True)
class AquaSettings:
    """Settings that a task's YAML gives under `metadata`, and `--metadata` or flags override.

    Attributes:
        n_proxies: option-shuffled copies of each question, 1 or more.
        seed: seed of every draw, 0 or more: orders of options and questions, distractors, options
            kept.
        orders: which orders of the options are asked, see `aqua.option_orders`. `auto` is
            `original`, or `drawn` where the right option has one place throughout the data.
        letter_style: what stands before an option, see `prompt_style.LETTER_STYLES`.
        n_options: options of each question, 2 to 26. More are cut to as many, the right one
            always kept; fewer are filled up if `distractors` says how. None leaves what the data
            has: class labels up to 8, other options up to 26; with `distractors`, questions of
            fewer than two get four.
        distractors: where missing wrong options come from: `none`, or right answers of other
            questions, drawn at `random` or of about the right answer's `length`.
        on_bad_doc: what happens to a doc that cannot be asked: `skip` and count, or `fail`.
        n_demonstrations: questions of the selection split set aside for demonstrations, where
            the data has no split for them.
        max_selection: most docs of the selection split that are read, drawn by seed.

    Raises:
        UsageError: a value that no task can make right.
    """

    n_proxies: int = 3
    seed: int = 0
    orders: str = "auto"
    letter_style: str = "A."
    n_options: int | None = None
    distractors: str = "none"
    on_bad_doc: str = "skip"
    n_demonstrations: int = 8
    max_selection: int = 10_000

    def __post_init__(self) -> None:
        for name in ("n_proxies", "seed", "n_demonstrations", "max_selection"):
            _require_whole(name, getattr(self, name))
        require_n_proxies(self.n_proxies)
        require_letter_style(self.letter_style)
        _require_one_of("orders", self.orders, ORDER_SETTINGS)
        _require_one_of("distractors", self.distractors, DISTRACTORS)
        _require_one_of("on_bad_doc", self.on_bad_doc, ON_BAD_DOC)
        if self.n_options is not None:
            _require_whole("n_options", self.n_options)
            if not 2 <= self.n_options <= len(LETTERS):
                raise UsageError(
                    f"n_options is {self.n_options}",
                    expected=f"2 to {len(LETTERS)}",
                    remedy="leave it out to ask the options the data has",
                )
        for name, least in (("seed", 0), ("n_demonstrations", 0), ("max_selection", 1)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"{name} is {getattr(self, name)}",
                    expected=f"{least} or more",
                    remedy="leave it out for the default",
                )


SETTING_NAMES = tuple(field.name for field in dataclasses.fields(AquaSettings))


def with_overrides(values: Mapping[str, Any], source_names: Iterable[str]) -> dict[str, Any]:
    """A task's `metadata` and `dataset_kwargs`, with its `overrides` before all else.

    Raises:
        UsageError: an override of something that the task does not have, which nothing would see.
    """
    overrides = values.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise UsageError(
            f"overrides is {overrides!r:.100}",
            expected="a mapping from settings to values",
            remedy="mend --metadata, or metadata of the task",
        )
    known = [*SETTING_NAMES, *source_names]
    _refuse_slips(overrides, known)
    for name in overrides:
        if name not in known:
            raise UsageError(
                f"overrides name {name!r}, which the task does not have",
                expected=f"some of {', '.join(known)}",
                remedy="mend --metadata; tasks made by aqua:NAME read their data as NAME does",
            )
    return {**values, **overrides}


def split_settings(values: Mapping[str, Any], source_names: Iterable[str]) -> AquaSettings:
    """The AQUA settings among a task's `metadata` and `dataset_kwargs`.

    The harness hands both over together, with the model's arguments, so that names not known here
    are passed over, but for those that look like a slip of the pen.

    Args:
        values: all of them.
        source_names: the other names that mean something.

    Raises:
        UsageError: a value is not acceptable, or a name is nearly a known one.
    """
    _refuse_slips(values, [*SETTING_NAMES, *source_names])
    return AquaSettings(**{name: values[name] for name in SETTING_NAMES if name in values})


def _refuse_slips(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise UsageError for a name that is nearly a known one."""
    for name in values:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and close:
            raise UsageError(
                f"the setting {name!r} is unknown",
                expected=f"{close[0]!r}, perhaps",
                remedy="mend the name in dataset_kwargs or metadata of the task",
            )


def _require_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(
            f"{name} is {value!r}", expected="a whole number", remedy="mend the setting"
        )


def _require_one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(
            f"{name} is {value!r}", expected=" or ".join(allowed), remedy=f"use {allowed[0]}"
        )
