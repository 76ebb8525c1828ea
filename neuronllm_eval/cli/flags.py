"""Settings models -> the flags of a command, and a command line with its `--config` -> settings.

1. Every setting is a flag (`add_flags`). argparse takes words apart; it converts nothing.
2. `--config FILE` has the same settings in YAML; FILE may be the name of a packaged recipe.
3. What was typed goes before what the file says. The models check both (`read`).
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.plain_files import read_yaml
from neuronllm_eval.formats.settings_model import Settings, about_flag, setting, shown_default
from neuronllm_eval.runs.settings import GROUPS

_FLAG_OPTIONS = ("nargs", "const", "metavar", "type")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_FOLDER = "recipes"
_PACKAGE_DIR = Path(__file__).resolve().parents[1]
Models = Sequence[type[Settings]]


class LogSettings(Settings):
    """What every command has."""

    verbosity: Annotated[str, BeforeValidator(lambda text: str(text).upper())] = setting(
        "WARNING", "log level", flags=("-v",), choices=LOG_LEVELS, type=str.upper
    )


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors have the form of this package's.

    Attributes:
        commands: parsers of its commands by name.
    """

    commands: Mapping[str, argparse.ArgumentParser] = {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but a command refuses the flags that it does not have."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}"
                + (f" (perhaps {near[0]} is meant)" if near else "")
            )
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, which argparse would print in its own form."""
        raise UsageError(
            f"{self.prog}: {message}",
            expected="the commands, flags and values that its help lists",
            remedy=f"see `{self.prog} --help`",
        )


# Flags ------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser, models: Models) -> None:
    """A flag for every setting of some models, under the headings of their groups."""
    fields = _fields(models)
    titles = dict.fromkeys((*GROUPS, *(about_flag(each)["group"] for each in fields.values())))
    for title in titles:
        members = {n: f for n, f in fields.items() if about_flag(f)["group"] == title}
        if members:
            group = parser.add_argument_group(title) if title else parser
            exclusive = {n for n, f in members.items() if about_flag(f).get("exclusive")}
            one_of = group.add_mutually_exclusive_group() if exclusive else group
            for name, field in members.items():
                _add_flag(one_of if name in exclusive else group, name, field)


def _add_flag(group: argparse._ActionsContainer, name: str, field: FieldInfo) -> None:
    about = about_flag(field)
    words = [name] if about.get("positional") else [f"--{name}", *about["flags"]]
    options: dict[str, Any] = {key: about[key] for key in _FLAG_OPTIONS if key in about}
    if field.annotation is bool:
        options["action"] = "store_true"
    elif about["choices"]:
        options["choices"] = about["choices"]
    # A file of flags may give it, so argparse must not demand it.
    required = " (required)" if field.is_required() and not about.get("positional") else ""
    text = f"{field.description}{shown_default(field)}{required}".replace("%", "%%")
    group.add_argument(*words, default=argparse.SUPPRESS, help=text, **options)


def _fields(models: Models) -> dict[str, FieldInfo]:
    return {name: field for model in models for name, field in model.model_fields.items()}


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """`--config`, which no file can have."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML with values of these flags, or the name of a packaged one, such as paper; "
        "values on the command line take precedence",
    )


# Settings ---------------------------------------------------------------------------------------


def read(options: argparse.Namespace, models: Models, program: str = "") -> list[Any]:
    """The settings of each model, from a parsed command line and the file that it names.

    Raises:
        UsageError: the file cannot be read or has an unknown key, or a value cannot be used.
    """
    fields = _fields(models)
    values = {name: value for name, value in vars(options).items() if name in fields}
    if getattr(options, "config", None) is not None:
        flags = [name for name, field in fields.items() if not about_flag(field).get("positional")]
        values = {**config_values(options.config, flags, program), **values}
    return [
        model.read({name: values[name] for name in model.model_fields if name in values})
        for model in models
    ]


def config_values(name: str, flags: Sequence[str], program: str) -> dict[str, Any]:
    """The values of a `--config` file, by flag.

    Raises:
        UsageError: it cannot be read, or has a key that is no flag.
    """
    try:
        values = read_yaml(config_path(name))
    except ArtifactError as error:
        raise UsageError(
            error.found,
            expected="a YAML file of flags and values, or the name of a packaged one: "
            + ", ".join(sorted(recipes())),
            remedy="check --config",
        ) from error
    if not isinstance(values, Mapping):
        raise UsageError(
            f"{name} holds {values!r:.100}",
            expected="flags and their values, such as `tasks: demo`",
            remedy="check --config",
        )
    for key in values:
        if key not in flags:
            raise UsageError(
                f"{name} has {key!r:.100}",
                expected=f"flags of {program}: {', '.join(sorted(flags))}",
                remedy="check --config",
            )
    return dict(values)


def config_path(given: str) -> Path:
    """The file that `--config` names: one that exists, or a packaged recipe.

    Args:
        given: a path; of a recipe its name, also as `recipes/NAME.yaml`.
    """
    path = Path(given)
    if path.is_file() or path.parent not in (Path(), Path(_FOLDER)):
        return path
    return recipes().get(path.name.removesuffix(".yaml"), path)


def recipes() -> dict[str, Path]:
    """The packaged recipes by name, such as `paper`."""
    folders = (_PACKAGE_DIR.parent / _FOLDER, _PACKAGE_DIR / _FOLDER)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
