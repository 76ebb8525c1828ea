"""Settings as values: one field holds a setting's type, default, range, choices, help and flags.

From a subclass of `Settings` come the flags of a command (`cli/flags.py`), the keys of a `--config`
file, the keywords of a Python function, the checks of all three, and the words of a command line
that says the same (`command_words`). A check that fails is a UsageError with the field's own words.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from neuronllm_eval.errors import UsageError

_NUMBER = re.compile(r"-?\d+(\.\d+)?")  # as a flag has it
_Model = TypeVar("_Model", bound="Settings")


def setting(
    default: Any,
    text: str,
    *,
    group: str = "",
    flags: tuple[str, ...] = (),
    choices: Sequence[str] = (),
    unset: str = "",
    **extra: Any,
) -> Any:
    """A field of a `Settings` model.

    Args:
        default: `...` for a setting that must be given.
        text: the help, without the default.
        group: heading of the flags it stands under.
        flags: short flags, such as `-b`.
        choices: the only values of a text.
        unset: what happens where the default is None, for the help.
        extra: `ge`, `le`, `gt` and `lt` bound a number; the rest is for the flag: `nargs`, `const`,
            `metavar`, and `positional` for a word without a flag.
    """
    bounds = {name: extra.pop(name) for name in ("ge", "le", "gt", "lt") if name in extra}
    about = {"group": group, "flags": flags, "choices": tuple(choices), "unset": unset, **extra}
    return Field(default, description=text, json_schema_extra=about, **bounds)


def changed(field: FieldInfo, **changes: Any) -> Any:
    """The same setting with another default or other words, for another model."""
    new = copy.copy(field)
    about = {**about_flag(field)}
    new.description = changes.pop("text", field.description)
    new.default = changes.pop("default", field.default)
    new.json_schema_extra = {**about, **changes}
    return new


def about_flag(field: FieldInfo) -> dict[str, Any]:
    """What `setting` got beside default, help and bounds."""
    about = field.json_schema_extra
    return about if isinstance(about, dict) else {}


class Settings(BaseModel):
    """A group of settings. Frozen; strict about names, and in files also about types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_from_a_bool(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and bool not in _plain_types(_field(cls, info).annotation):
            raise ValueError("neither true nor false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _one_of_the_choices(cls, value: Any, info: ValidationInfo) -> Any:
        choices = about_flag(_field(cls, info)).get("choices")
        if choices and value is not None and value not in choices:
            raise ValueError("not one of the choices")
        return value

    @classmethod
    def read(cls: type[_Model], values: Mapping[str, Any]) -> _Model:
        """The settings that a user gave: texts of flags, values of YAML or of Python.

        Args:
            values: by name; None where a setting is not given.

        Raises:
            UsageError: a name is unknown, or a value cannot be used.
        """
        given = {name: _as_text(value) for name, value in values.items() if value is not None}
        try:
            return cls.model_validate(given, strict=False)
        except ValidationError as error:
            name, found, expected = first_problem(cls, given, error)
            raise UsageError(found, expected=expected, remedy=f"check --{name}") from error


def _field(model: type[BaseModel], info: ValidationInfo) -> FieldInfo:
    assert info.field_name is not None
    return model.model_fields[info.field_name]


def first_problem(
    model: type[BaseModel], values: Any, error: ValidationError
) -> tuple[str, str, str]:
    """Of the first of some values that is wrong: its name, what was found, what is expected."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    names = ", ".join(sorted(model.model_fields))
    if problem["type"] == "extra_forbidden":
        return name, f"unknown setting {name!r:.100}", f"some of {names}"
    if name not in model.model_fields:
        return name, f"a {type(values).__name__}", f"a mapping of {names}"
    expected = expected_words(model.model_fields[name])
    if problem["type"] == "missing":
        return name, f"{name} is missing", f"{expected} ({model.model_fields[name].description})"
    value = values[name]
    shown = value if isinstance(value, str) and _NUMBER.fullmatch(value) else repr(value)
    return name, f"{name} is {shown:.100}", expected


def shown_default(field: FieldInfo) -> str:
    """What the help says of a setting's default, with the space before it."""
    about, default = about_flag(field), field.default
    words = about.get("shown") or (about["unset"] if default is None else "")
    if not words and default is not None and default is not False and default not in ((), {}):
        words = ",".join(map(_text, default)) if isinstance(default, tuple) else _text(default)
    if field.is_required():
        words = ""
    return f" (default: {words})" if words else ""


# What a field takes, in words --------------------------------------------------------------------


def expected_words(field: FieldInfo) -> str:
    """What a setting takes, for messages."""
    about = about_flag(field)
    if about.get("choices"):
        return " or ".join(map(str, about["choices"]))
    if about.get("expected"):
        return str(about["expected"])
    words = [_type_words(each) for each in _alternatives(field.annotation)]
    return " or ".join(dict.fromkeys(words)) + _range_words(field)


def _range_words(field: FieldInfo) -> str:
    bounds = {
        name: getattr(each, name)
        for each in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(each, name, None) is not None
    }
    if "ge" in bounds and "le" in bounds:
        return f", {bounds['ge']:g} to {bounds['le']:g}"
    words = {"ge": "{:g} or more", "gt": "above {:g}", "le": "at most {:g}", "lt": "below {:g}"}
    said = [words[name].format(value) for name, value in bounds.items()]
    return "".join(f", {each}" for each in said)


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, None left out; of another annotation itself."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return [each for part in get_args(annotation) for each in _alternatives(part)]
    return [] if annotation is NoneType else [annotation]


def _plain_types(annotation: Any) -> list[Any]:
    """As `_alternatives`, and what may be anything counts as bool too."""
    return [bool if each is Any else each for each in _alternatives(annotation)]


_TYPE_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false",
               Path: "a path"}  # fmt: skip


def _type_words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if origin is tuple:
        (item, *_) = get_args(annotation)
        return {float: "numbers", Path: "paths"}.get(item, "a list of texts")
    if origin is dict:
        return "a mapping"
    return _TYPE_WORDS.get(annotation, str(annotation))


# Values in the forms in which users give them ---------------------------------------------------


def _split(value: Any) -> list[Any]:
    """The items of a list, and of texts with commas between items."""
    items = value if isinstance(value, list | tuple) else [value]
    return [
        part for item in items for part in (item.split(",") if isinstance(item, str) else [item])
    ]


def _as_text(value: Any) -> Any:
    """A path, and a type or device of torch, as text; any other value as it is."""
    if type(value).__module__ == "torch":  # not imported here
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, Path) else value


def _is_plain(value: Any) -> bool:
    """Whether YAML and JSON can hold a value."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def _names(value: Any) -> Any:
    names = tuple(name for name in _split(value) if name != "")
    if not names:
        raise ValueError("no name")
    return names


def _numbers(value: Any) -> Any:
    return tuple(_split(value))


def _path(value: Any) -> Any:
    if value == "":  # what an unset variable of the shell leaves
        raise ValueError("empty")
    return value


def _paths(value: Any) -> Any:
    return tuple(map(_path, value if isinstance(value, list | tuple) else [value]))


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_pairs(value: Any) -> Any:
    """`name=value,name=value` or a JSON object, as lm_eval reads them; a mapping as it is."""
    items = [value] if isinstance(value, str) else value
    text = ",".join(items) if isinstance(items, list | tuple) else ""
    if text.lstrip().startswith("{"):
        value = _json(text)
    if isinstance(value, Mapping):
        pairs = {str(name): _as_text(each) for name, each in value.items()}
        for name, each in pairs.items():
            if not _is_plain(each):
                raise UsageError(
                    f"{name} is a {type(each).__name__}",
                    expected="text, a number, true, false, or lists and mappings of these",
                    remedy=f"pass {name} as it would stand in a file",
                )
        return pairs
    from lm_eval.utils import simple_parse_args_string

    try:
        return dict(simple_parse_args_string(",".join(items)))
    except (TypeError, IndexError) as error:
        raise ValueError("no pairs") from error


FilePath = Annotated[Path, BeforeValidator(_path)]
# Several values, also as one text with commas between them.
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_numbers)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_numbers)]
FilePaths = Annotated[tuple[Path, ...], BeforeValidator(_paths)]
# `name=value,name=value` as lm_eval reads it, and JSON; also as mappings.
Pairs = Annotated[dict[str, Any], BeforeValidator(parse_pairs)]
Json = Annotated[dict[str, Any], BeforeValidator(_json)]


# A command line that says the same ---------------------------------------------------------------


def command_words(*settings: Settings) -> list[str]:
    """The words of a command line that gives these settings; defaults are left out."""
    arguments: list[str] = []
    flags: list[str] = []
    for each in settings:
        for name, field in type(each).model_fields.items():
            value, about = getattr(each, name), about_flag(field)
            if about.get("positional"):
                arguments += map(_plain_word, value if isinstance(value, tuple) else [value])
            elif value is not None and value != field.default:
                flags += _flag_words(name, value, about)
    return [*arguments, *flags]


def _flag_words(name: str, value: Any, about: Mapping[str, Any]) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    if isinstance(value, dict):
        is_flat = not any(isinstance(each, dict | list | tuple) for each in value.values())
        pairs = ",".join(f"{key}={each}" for key, each in value.items())
        as_json = about.get("json") or not is_flat
        return [f"--{name}", json.dumps(value) if as_json else pairs]
    if isinstance(value, tuple) and any(isinstance(each, Path) for each in value):
        return [f"--{name}", *map(_plain_word, value)]
    if isinstance(value, tuple):
        return [f"--{name}={','.join(map(_text, value))}"]
    return [f"--{name}={_text(value)}"]


def _plain_word(path: Any) -> str:
    """A path that is not taken for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _text(value: Any) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
