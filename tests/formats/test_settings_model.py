"""One field is a flag, a key of a file, a keyword, a check and an entry of a file."""

from __future__ import annotations

import argparse

import pytest

from neuronllm_eval import api
from neuronllm_eval.cli import commands, flags
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.formats.settings_model import (
    FilePaths,
    Json,
    Names,
    Numbers,
    Pairs,
    Settings,
    changed,
    command_words,
    setting,
)
from neuronllm_eval.runs import settings as run_settings
from neuronllm_eval.runs.settings import IdentifySettings, LaunchSettings, RunSettings


class More(IdentifySettings):
    """Settings with one more."""

    patience: int = setting(3, "how long to wait", group="what to run", flags=("-p",), ge=1, le=9)


def read(words: list[str], model: type[Settings] = More) -> Settings:
    parser = flags.Parser(prog="it")
    flags.add_config_flag(parser)
    flags.add_flags(parser, [model])
    return flags.read(parser.parse_args(words), [model])[0]


def test_a_new_field_is_everything_else(tmp_path):
    # A flag, with its short form, its help and its check.
    assert read([]).patience == 3
    assert read(["--patience", "4"]).patience == read(["-p", "4"]).patience == 4
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, [More])
    assert "how long to wait (default: 3)" in parser.format_help()
    with pytest.raises(UsageError, match=r"patience is 10.\nExpected: a whole number, 1 to 9"):
        read(["--patience", "10"])
    # A key of a file.
    config = tmp_path / "own.yaml"
    config.write_text("patience: 5\n")
    assert read(["--config", str(config)]).patience == 5

    # A keyword of a function.
    @api._takes(More)
    def function(**settings):
        """It.

        Args:
            **settings: as above.
        """

    assert "patience: how long to wait (default: 3)." in function.__doc__
    # Words of a command line.
    assert command_words(More.read({"patience": 4})) == ["--patience=4"]


def test_a_new_field_of_runs_is_kept(tmp_path, monkeypatch):
    class Kept(RunSettings):
        patience: int = setting(3, "how long to wait", ge=1)

    monkeypatch.setattr(run_settings, "RunSettings", Kept)
    path = tmp_path / "run.yaml"
    kept = Kept(model_args={"pretrained": "m"}, task="t", patience=4)
    path.write_text(kept.to_yaml({}, {}))
    assert run_settings.load_run_file(path)[0] == kept
    path.write_text(path.read_text().replace("patience: 4", "patience: 0"))
    with pytest.raises(ArtifactError, match=r"settings: patience is 0.\nExpected: a whole number"):
        run_settings.load_run_file(path)


class Odd(Settings):
    """Settings of every type."""

    where: FilePaths = setting((), "places", positional=True, nargs="*")
    names: Names = setting(("a",), "names", nargs="+")
    numbers: Numbers = setting((), "numbers")
    pairs: Pairs = setting({}, "pairs", nargs="+")
    values: Json = setting({}, "values", json=True)
    yes: bool = setting(False, "whether")
    text: bool | str = setting(False, "a text", nargs="?", const=True)
    one_of: str = setting("x", "choice", choices=("x", "y"))
    share: float = setting(0.5, "share", gt=0, lt=1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"where": ["-x", "y z"], "names": "b,c", "numbers": [1, 2.5, 1e-7]},
        {"pairs": {"a": 1, "b": "c d"}, "values": {"n": [1, None]}, "yes": True, "text": "-t"},
        {"text": True, "one_of": "y", "share": 0.25},
        {"pairs": ['{"a": {"b": [1, false]}, "c": "d,e=f"}']},
    ],
)
def test_words_give_the_settings_back(values):
    settings = Odd.read(values)
    again = read(command_words(settings), Odd)
    places = [str(path).removeprefix("./") for path in again.where]
    assert places == [str(path) for path in settings.where]
    assert again.model_dump(exclude={"where"}) == settings.model_dump(exclude={"where"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": ","}, "names is ','.\nExpected: a list of texts."),
        ({"numbers": "1,x"}, "numbers is '1,x'.\nExpected: numbers."),
        ({"numbers": "nan"}, "numbers is 'nan'."),
        ({"pairs": 5}, "pairs is 5.\nExpected: a mapping."),
        ({"values": "[1]"}, "values is '[1]'.\nExpected: a mapping."),
        ({"yes": "maybe"}, "yes is 'maybe'.\nExpected: true or false."),
        ({"one_of": "z"}, "one_of is 'z'.\nExpected: x or y."),
        ({"share": 1}, "share is 1.\nExpected: a number, above 0, below 1."),
        ({"share": True}, "share is True."),
        ({"where": ""}, "where is ''.\nExpected: paths."),
        ({"other": 1}, "unknown setting 'other'.\nExpected: some of names, numbers,"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(UsageError) as caught:
        Odd.read(values)
    assert message in str(caught.value)


def test_a_setting_with_another_default_keeps_the_rest():
    class Other(Odd):
        share: float = changed(Odd.model_fields["share"], default=0.75, text="a part")

    assert Other().share == 0.75
    assert Odd().share == 0.5
    with pytest.raises(UsageError, match="above 0, below 1"):
        Other.read({"share": 2})
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, [Other])
    assert "a part (default: 0.75)" in parser.format_help()


def test_resume_and_overwrite_exclude_each_other():
    with pytest.raises(UsageError, match="not allowed with argument --resume"):
        commands.main_parser().parse_args(["identify", "--resume", "--overwrite"])
    with pytest.raises(UsageError, match="resume and overwrite"):
        LaunchSettings.read({"resume": True, "overwrite": True})


def test_every_setting_of_every_command_is_explained():
    for command in commands.BY_NAME.values():
        for model in command.models:
            for name, field in model.model_fields.items():
                assert field.description, f"{command.name} --{name}"
