"""`--config FILE`: a command's flags from YAML, as lm_eval takes them.

Keys are flags without their dashes. What the command line says goes before what the file says.
Instead of a path, FILE may be the name of a packaged recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.yaml_files import read_yaml

FOLDER = "recipes"
_PACKAGE_DIR = Path(__file__).resolve().parents[1]


def recipes() -> dict[str, Path]:
    """The packaged recipes by name, such as `paper`."""
    folders = (_PACKAGE_DIR.parent / FOLDER, _PACKAGE_DIR / FOLDER)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def config_path(given: str) -> Path:
    """The file that `--config` names: one that is there, or a packaged recipe.

    Args:
        given: a path; of a recipe its name, also as `recipes/NAME.yaml`.
    """
    path = Path(given)
    if path.is_file() or path.parent not in (Path(), Path(FOLDER)):
        return path
    return recipes().get(path.name.removesuffix(".yaml"), path)


FLAG = "--config"


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """`--config`, for the help; `with_config` takes it out before anything is parsed."""
    parser.add_argument(
        FLAG,
        metavar="FILE",
        help="YAML with values of these flags, or a packaged one by its name, such as paper; the "
        "command line goes before",
    )


def takes_config(parser: argparse.ArgumentParser) -> bool:
    """Whether `add_config_flag` was called."""
    return any(FLAG in action.option_strings for action in parser._actions)


def with_config(given: Sequence[str], parser: argparse.ArgumentParser, n_words: int) -> list[str]:
    """A command line with the flags of its `--config` written out.

    They stand before the flags that were typed, which go before them, and after what else was
    typed first: a flag that takes several words would take a run directory for one of them.

    Args:
        given: the command line.
        parser: of the command.
        n_words: how many words the command's own name has.

    Raises:
        UsageError: the file cannot be read, or has a key that is no flag of the command, or a
            value that no flag takes.
    """
    if not takes_config(parser):
        return list(given)  # the parser refuses the flag
    rest, path = _taken_out(given)
    if path is None:
        return rest
    try:
        values = read_yaml(config_path(path))
    except ArtifactError as error:
        raise UsageError(
            error.found,
            expected="a YAML file of flags and values, or the name of a packaged one: "
            + ", ".join(sorted(recipes())),
            remedy=f"check {FLAG}",
        ) from error
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{path} holds {values!r:.100}",
            expected="flags and their values, such as `tasks: demo`",
            remedy=f"check {FLAG}",
        )
    written = as_words(values, parser, path, f"check {FLAG}")
    typed = (at for at, word in enumerate(rest) if at >= n_words and word.startswith("-"))
    at = next(typed, len(rest))
    return [*rest[:at], *written, *rest[at:]]


def as_words(
    values: Mapping[Any, Any], parser: argparse.ArgumentParser, source: str, remedy: str
) -> list[str]:
    """The words of a command line that say the same as some values.

    Args:
        values: by flag, without its dashes; None is not given.
        parser: of the command.
        source: where the values are from, for error messages.
        remedy: of what is refused.

    Raises:
        UsageError: a key is no flag of the command, or a value none that a flag takes.
    """
    flags = {
        text.removeprefix("--"): action
        for action in parser._actions
        for text in action.option_strings
        if text.startswith("--") and text not in ("--help", FLAG, "--version")
    }
    written: list[str] = []
    for key, value in values.items():
        if key not in flags:
            raise UsageError(
                f"{source} has {key!r:.100}",
                expected=f"flags of {parser.prog}: {', '.join(sorted(flags))}",
                remedy=remedy,
            )
        written += _as_flag(str(key), value, flags[key], source)
    return written


def _taken_out(given: Sequence[str]) -> tuple[list[str], str | None]:
    rest, path = [], None
    words = iter(given)
    for word in words:
        if word == FLAG:
            path = next(words, None)
            if path is None:
                raise UsageError(f"{FLAG} names no file", expected="a path", remedy="add one")
        elif word.startswith(f"{FLAG}="):
            path = word.split("=", 1)[1]
        else:
            rest.append(word)
    return rest, path


def _as_flag(key: str, value: Any, action: argparse.Action, source: str) -> list[str]:
    """The words of the command line that say the same."""
    flag = f"--{key}"
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(
                f"{source}: {key} is {value!r:.100}", expected="true or false", remedy="check it"
            )
        return [flag] if value else []
    if isinstance(value, bool) and action.nargs == "?":
        return [flag] if value else []
    if isinstance(value, Mapping) and key.endswith("_args"):
        return [flag, ",".join(f"{name}={each}" for name, each in value.items())]
    if isinstance(value, Mapping):
        return [flag, json.dumps(value)]
    if isinstance(value, list | tuple):
        if action.nargs == "+":
            return [flag, *map(str, value)]
        return [f"{flag}={','.join(map(str, value))}"]
    return [f"{flag}={value}"]
