"""What `--help` and the shell's completion offer is what the commands take."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from pathlib import Path

import pytest

from neuronllm_eval.cli import main as cli
from neuronllm_eval.cli import parsers as help_examples
from neuronllm_eval.cli.config_file import with_config
from neuronllm_eval.errors import UsageError
from tests.fixtures.cli import call

PARSER = cli.main_parser(cli.COMMANDS)
NAMES = [name for name in PARSER.commands if name != "run"]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
COMMANDS = {name: name.split() for name in (*NAMES, "tasks make")}
# What each command that has arguments of its own is called with, beside a file.
ARGUMENTS = {
    "validate": ["runs/q"],
    "report": ["runs/q"],
    "verify": ["runs/q"],
    "explain": ["runs/q", "runs/r"],
    "compare": ["runs/q", "runs/r"],
    "export": ["runs/q", "--condition", "enhance", "--output_path", "out"],
    "tasks make": ["arc_easy", "--output_path", "out"],
}
# Of the flags that take several words, or one or none.
SEVERAL = {"conditions": "[suppress_good, enhance]", "include_path": "[a, b]"}


def examples(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  neuronllm-eval ")]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_command_are_ones_that_it_takes(name):
    found = examples(help_examples.of_command(name))
    assert found
    for given in found:
        before_output = given[: given.index(">")] if ">" in given else given
        words = with_config(before_output, *PARSER.of_command(given))
        options = PARSER.parse_args(words)
        assert options.execute in cli.COMMANDS.values()
        assert given[0] == name


def test_the_examples_of_all_commands_are_ones_that_they_take():
    found = examples(help_examples.ALL)
    assert {given[0] for given in found} > {"identify", "validate", "compare", "run"}
    for given in found:
        if given[0] != "run":
            PARSER.parse_args(given)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_sentence_and_examples_in_its_help(name, capsys):
    with pytest.raises(SystemExit):
        PARSER.parse_args([name, "--help"])
    said = capsys.readouterr().out
    assert help_examples.of_command(name) in said
    sentence = PARSER.commands[name].description
    assert sentence
    assert sentence.split()[0] in said


def test_completion_of_commands_and_flags(tmp_path):
    code, out, _ = call("completion", "bash")
    assert code == 0
    (tmp_path / "completion.sh").write_text(out)
    asked = """source completion.sh
COMP_WORDS=(neuronllm-eval rep); COMP_CWORD=1; _shtab_neuronllm_eval; echo "${COMPREPLY[@]}"
COMP_WORDS=(neuronllm-eval validate --sca); COMP_CWORD=2; _shtab_neuronllm_eval
echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["report", "--scale"]
    assert call("completion", "zsh")[1].startswith("#compdef neuronllm-eval")
    assert call("completion", "fish")[0] == 2


# --config ---------------------------------------------------------------------------------------


def parsed(given: list[str]) -> argparse.Namespace:
    return PARSER.parse_args(with_config(given, *PARSER.of_command(given)))


def section_of(name: str) -> str:
    """What the page on the command line says of a command."""
    return PAGE.read_text().split(f"\n## neuronllm-eval {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_page_and_behaviour_agree_on_the_file(name, tmp_path, capsys):
    config = tmp_path / "own.yaml"
    config.write_text("verbosity: ERROR\n")
    given = [*COMMANDS[name], *ARGUMENTS.get(name, []), f"--config={config}"]
    with pytest.raises(SystemExit):
        PARSER.parse_args([*COMMANDS[name], "--help"])
    is_listed = "--config FILE" in capsys.readouterr().out
    shared = "*other*: as for" in section_of(name)  # of a command that has it
    assert ("`--config FILE`" in section_of(name) or shared) == is_listed
    if is_listed:
        assert parsed(given).verbosity == "ERROR"
    else:
        assert name in ("tasks", "completion")
        with pytest.raises(UsageError, match="unrecognized arguments: --config="):
            parsed([*given, *(["bash"] if name == "completion" else [])])


def test_commands_with_arguments_are_all_known():
    for name, words in COMMANDS.items():
        own, _ = PARSER.of_command(words)
        positional = [action for action in own._actions if not action.option_strings]
        assert (name in ARGUMENTS) == (bool(positional) and name not in ("tasks", "completion"))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_list_at_the_end_of_a_file_leaves_the_arguments_alone(name, tmp_path):
    own, _ = PARSER.of_command(COMMANDS[name])
    several = {
        action.dest
        for action in own._actions
        if action.option_strings and action.nargs in ("+", "*", "?")
    }
    assert several <= set(SEVERAL)
    config = tmp_path / "own.yaml"
    here, (first, *rest) = ["--config", str(config)], ARGUMENTS[name]
    plain = vars(parsed([*COMMANDS[name], first, *rest]))
    for last in sorted(several) or [""]:
        config.write_text("verbosity: ERROR\n" + (f"{last}: {SEVERAL[last]}\n" if last else ""))
        for given in ([*here, first, *rest], [first, *here, *rest], [first, *rest, *here]):
            found = vars(parsed([*COMMANDS[name], *given]))
            assert found["verbosity"] == "ERROR"
            differing = {key for key in plain if found[key] != plain[key]}
            assert differing == {"verbosity", last} - {""}
        typed = parsed([*COMMANDS[name], *here, first, *rest, "--verbosity", "INFO"])
        assert typed.verbosity == "INFO"  # the command line goes before


def test_a_list_in_a_file_before_typed_flags_leaves_them_alone(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("conditions: [suppress_good, enhance]\n")
    for given in (["--seed", "3", "runs/q"], ["--seed=3", "--", "runs/q"]):
        found = parsed(["validate", "--config", str(config), *given])
        assert (found.run_dir, found.seed) == ("runs/q", 3)
        assert found.conditions == [["suppress_good"], ["enhance"]]
    given = ["tasks", "--verbosity", "ERROR", "make", "--config", str(config), "x", "-o", "out"]
    with pytest.raises(UsageError, match="has 'conditions'"):
        parsed(given)
