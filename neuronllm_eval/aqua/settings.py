"""How a benchmark is converted to an AQUA task: the settings of YAML and command line. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from neuronllm_eval.aqua.distractors import DISTRACTORS
from neuronllm_eval.aqua.proxies import LETTER_STYLES, LETTERS, ORDERS
from neuronllm_eval.errors import UsageError
from neuronllm_eval.formats.settings_model import Settings, setting

# Before the name of a harness task whose AQUA form is meant.
PREFIX = "aqua:"
ON_BAD_DOC = ("skip", "fail")
ORDER_SETTINGS = ("auto", *ORDERS)
# A number of proxies, or `proxies.ALL_LETTERS`.
NProxies = Annotated[int, Field(ge=1)] | Literal["all"]
N_PROXIES_EXPECTED = "a whole number, 1 or more, or all"


class AquaSettings(Settings):
    """Settings that a task's YAML gives under `metadata`, and `--metadata` or flags override.

    Attributes:
        n_proxies: option-shuffled copies of each question; `all` for as many as it has options,
            with the gold option under each letter once.
        seed: seed of every draw: orders of options and questions, distractors, options kept.
        orders: which orders of the options are used, see `proxies.option_orders`. `auto` is
            `original`, or `drawn` where the gold option has the same index throughout the data.
        letter_style: what stands before an option, see `proxies.LETTER_STYLES`.
        n_options: options of each question. More are cut to as many, the gold one always kept;
            fewer are filled up if `distractors` says how. None leaves what the data has: class
            labels up to 8, other options up to 26; with `distractors`, questions of fewer than two
            get four.
        distractors: where missing wrong options come from: `none`, or gold answers of other
            questions, drawn at `random` or of about the gold answer's `length`.
        on_bad_doc: what happens to a doc that cannot be used: `skip` and count, or `fail`.
        n_demonstrations: questions of the selection split reserved for demonstrations, where the
            data has no split for them.
        max_selection: docs of the selection split that are read at most, drawn by seed.
    """

    n_proxies: NProxies = setting(
        3, "option-shuffled copies of each question", expected=N_PROXIES_EXPECTED
    )
    seed: int = setting(0, "seed of every draw", ge=0)
    orders: str = setting("auto", "orders of the options", choices=ORDER_SETTINGS)
    letter_style: str = setting("A.", "how letters are written", choices=tuple(LETTER_STYLES))
    n_options: int | None = setting(None, "options of each question", ge=2, le=len(LETTERS))
    distractors: str = setting("none", "source of missing wrong options", choices=DISTRACTORS)
    on_bad_doc: str = setting("skip", "docs that cannot be used", choices=ON_BAD_DOC)
    n_demonstrations: int = setting(8, "questions reserved for demonstrations", ge=0)
    max_selection: int = setting(10_000, "docs of the selection split read at most", ge=1)


SETTING_NAMES = tuple(AquaSettings.model_fields)


def with_overrides(values: Mapping[str, Any], source_names: Iterable[str]) -> dict[str, Any]:
    """A task's `metadata` and `dataset_kwargs`, with its `overrides` taking precedence.

    Raises:
        UsageError: an override of something that the task does not have.
    """
    overrides = values.get("overrides") or {}
    if not isinstance(overrides, Mapping):
        raise UsageError(
            f"overrides is {overrides!r:.100}",
            expected="a mapping from settings to values",
            remedy="fix --metadata, or metadata of the task",
        )
    names = [*SETTING_NAMES, *source_names]
    _refuse_typos(overrides, names)
    for name in overrides:
        if name not in names:
            raise UsageError(
                f"overrides name {name!r}, which the task does not have",
                expected=f"some of {', '.join(names)}",
                remedy="fix --metadata; tasks made by aqua:NAME read their data as NAME does",
            )
    return {**values, **overrides}


def split_settings(values: Mapping[str, Any], source_names: Iterable[str]) -> AquaSettings:
    """The AQUA settings among a task's `metadata` and `dataset_kwargs`.

    The harness passes both together, with the model's arguments, so unknown names are ignored
    unless they look like a typo.

    Args:
        values: all of them.
        source_names: the other names that have a meaning.

    Raises:
        UsageError: a value is not acceptable, or a name is nearly a known one.
    """
    _refuse_typos(values, [*SETTING_NAMES, *source_names])
    return AquaSettings.read({name: values[name] for name in SETTING_NAMES if name in values})


def _refuse_typos(values: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in values:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
        if name not in names and close:
            raise UsageError(
                f"the setting {name!r} is unknown",
                expected=f"{close[0]!r}, perhaps",
                remedy="fix the name in dataset_kwargs or metadata of the task",
            )
