"""Artifacts as typed values: every file has one frozen dataclass, and `load` is the way to read it.

pydantic checks the types (strictly: no text for a number, no unknown key, no NaN). What a type does
not say, a `__post_init__` checks, which raises ValueError. Whatever is wrong with a file becomes an
ArtifactError that names the file, the line and the key.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    with_config,
)

from neuronllm_eval.errors import ArtifactError, NeuronLLMError
from neuronllm_eval.formats.plain_files import (
    MOST_JSON_BYTES,
    read_text,
    require_distinct_keys,
    require_readable,
)

# 100,000 docs under 300 conditions have about a gigabyte, in lines of 20,000 characters.
MOST_LINES_BYTES = 8 << 30
MOST_LINE_LENGTH = 16 << 20
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
# The decorator of a file's dataclass; those within it follow.
artifact = with_config(STRICT)

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
PositiveCount = Annotated[int, Field(ge=1, lt=1 << 62)]
# JSON has no NaN: null stands for it.
NumberOrNaN = Annotated[
    float, WrapValidator(lambda value, check: math.nan if value is None else check(value))
]
_Value = TypeVar("_Value")


def one_of(choices: Collection[str]) -> AfterValidator:
    """Restricts the text of a field to these."""

    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"{value!r:.100} is not {' or '.join(choices)}")
        return value

    return AfterValidator(check)


def load(model: type[_Value], path: Path, remedy: str) -> _Value:
    """Read a JSON file as a value of type `model`.

    Raises:
        ArtifactError: the file is missing, too large, not JSON, or does not fit the type.
    """
    return parse(model, read_text(path, MOST_JSON_BYTES, remedy), str(path), remedy)


def load_lines(model: type[_Value], path: Path, remedy: str) -> list[_Value]:
    """Read a JSON-lines file, one value of type `model` a line.

    Raises:
        ArtifactError: as `load`, naming the line.
    """
    return list(iterate_lines(model, path, remedy))


def iterate_lines(model: type[_Value], path: Path, remedy: str) -> Iterator[_Value]:
    """The same, one by one."""
    require_readable(path, MOST_LINES_BYTES, remedy)
    try:
        with path.open(encoding="utf-8") as file:
            # A line without end is not read whole.
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_LENGTH), ""), 1):
                where = f"{path}, line {number}"
                if not line.endswith("\n"):
                    raise ArtifactError(f"{where} is cut off", expected="a line", remedy=remedy)
                yield parse(model, line, where, remedy)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}", expected="text in UTF-8", remedy=remedy
        ) from error


def parse(model: type[_Value], text: str, where: str, remedy: str) -> _Value:
    """A value of type `model` from JSON.

    Args:
        model: a dataclass that is an `artifact`, or what pydantic makes a validator of.
        text: the JSON.
        where: file and line, for the message.
        remedy: what the user can do about a damaged file.

    Raises:
        ArtifactError: it is not JSON, or does not fit the type.
    """
    with _named(where, remedy):
        try:
            if not _is_partial(model):
                require_distinct_keys(text)
        except (ValueError, RecursionError) as error:  # also integers of thousands of digits
            raise _not_json(where, error, remedy) from error
        return cast(_Value, _adapter(cast(Any, model)).validate_json(text))


def check(model: type[_Value], values: Any, where: str, remedy: str) -> _Value:
    """A value of type `model` from values that are not JSON, such as those of YAML.

    Raises:
        ArtifactError: they do not fit the type.
    """
    with _named(where, remedy):
        return cast(_Value, _adapter(cast(Any, model)).validate_python(values))


@contextmanager
def _named(where: str, remedy: str) -> Iterator[None]:
    """Makes what pydantic and values' own checks raise an ArtifactError that names the file."""
    try:
        yield
    except ArtifactError:
        raise
    except NeuronLLMError as error:
        raise ArtifactError(
            f"{where}: {error.found}", expected=error.expected, remedy=remedy
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            raise _not_json(where, problem["ctx"]["error"], remedy) from error
        found, expected = explain_failure(error)
        raise ArtifactError(f"{where}: {found}", expected=expected, remedy=remedy) from error


def _not_json(where: str, reason: object, remedy: str) -> ArtifactError:
    return ArtifactError(
        f"{where} is not valid JSON: {reason}",
        expected="a file as this package writes it",
        remedy=remedy,
    )


def _is_partial(model: object) -> bool:
    """Whether the type leaves out a part of its file, and so does not check it."""
    return bool(getattr(model, "__pydantic_config__", {}).get("extra") == "ignore")


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def explain_failure(error: ValidationError) -> tuple[str, str]:
    """What a pydantic validation found, naming the key, and what it expected.

    Of several problems it names the schema version, which explains the others, or the first.
    """
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda each: each["loc"] != ("schema_version",))
    key = ".".join(_key(part) for part in problem["loc"]) or "the content"
    if problem["type"] == "missing":
        found, expected = f"{key} is missing", "every key"
    elif problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        found, expected = f"{key} is an unknown key", "known keys only"
    elif problem["type"] == "value_error":
        found = (f"{key}: " if problem["loc"] else "") + f"{problem['ctx']['error']!s:.300}"
        expected = "consistent values, as this package writes them"
    else:
        found = f"{key} is {problem['input']!r:.100}"
        expected = problem["msg"].removeprefix("Input should be ")
    others = len(problems) - 1
    return found + (f" (and {others} more problems)" if others else ""), expected


def _key(part: int | str) -> str:
    """A part of a key's path; keys that are no plain names are quoted."""
    return str(part) if str(part).isidentifier() or isinstance(part, int) else f"{part!r:.60}"
