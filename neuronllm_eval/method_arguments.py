"""The flags that choose methods: `--method` and `--method_args`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from lm_eval.utils import simple_parse_args_string

from neuronllm_eval.errors import UsageError
from neuronllm_eval.methods import METHODS, Method, make_method


def add_method_flags(group: argparse._ArgumentGroup) -> None:
    """Add them to a group of flags."""
    group.add_argument(
        "--method",
        nargs="+",
        default=["ace"],
        metavar="METHOD",
        help=f"what scores neurons: {', '.join(METHODS)} (default: ace). Several share one pass "
        "over the questions, and write to a folder each: OUTPUT_PATH/METHOD/TASK",
    )
    group.add_argument(
        "--method_args",
        nargs="+",
        default=[],
        metavar="SETTING=VALUE",
        help="settings of methods, such as threshold=0.2,top_v=10 (qrnca) or seed=1 (random)",
    )


def chosen_methods(names: Sequence[str], settings: Sequence[str]) -> tuple[Method, ...]:
    """The methods that these flags ask for.

    Args:
        names: values of `--method`, with commas between several.
        settings: values of `--method_args`; each goes to the methods that have it.

    Raises:
        UsageError: an unknown or repeated method, a setting that none of them has, or a value that
            it cannot have.
    """
    wanted = [name for group in names for name in group.split(",") if name]
    if not wanted or len(set(wanted)) < len(wanted):
        raise UsageError(
            f"method is {','.join(wanted)!r}",
            expected=f"each at most once: {', '.join(METHODS)}",
            remedy="check --method",
        )
    found = [make_method(name) for name in wanted]
    left = _parsed(settings)
    known = {field.name for method in found for field in dataclasses.fields(method)}
    if unknown := sorted(set(left) - known):
        raise UsageError(
            f"no chosen method has a setting {unknown[0]!r:.100}",
            expected=", ".join(sorted(known)) or f"none with --method {','.join(wanted)}",
            remedy="check --method_args",
        )
    return tuple(
        make_method(
            method.name,
            {
                field.name: left[field.name]
                for field in dataclasses.fields(method)
                if field.name in left
            },
        )
        for method in found
    )


def _parsed(settings: Sequence[str]) -> dict[str, Any]:
    try:
        return dict(simple_parse_args_string(",".join(settings)))
    except (ValueError, IndexError) as error:
        raise UsageError(
            f"--method_args {' '.join(settings)} cannot be read: {error}",
            expected="setting=value,setting=value",
            remedy="for example --method_args threshold=0.2,top_v=10",
        ) from error
