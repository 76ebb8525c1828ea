"""What `--help` and the shell's completion offer is what the commands take."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from neuronllm_eval import cli, help_examples
from neuronllm_eval.config_file import with_config
from tests.cli_fixtures import call

PARSER = cli.main_parser(cli.COMMANDS)
NAMES = [name for name in PARSER.commands if name != "run"]


def examples(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  neuronllm-eval ")]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_command_are_ones_that_it_takes(name):
    found = examples(help_examples.of_command(name))
    assert found
    for given in found:
        before_output = given[: given.index(">")] if ">" in given else given
        words = with_config(before_output, PARSER.commands[name], 1)
        options = PARSER.parse_args(words)
        assert options.execute in cli.COMMANDS.values()
        assert given[0] == name


def test_the_examples_of_all_commands_are_ones_that_they_take():
    found = examples(help_examples.ALL)
    assert {given[0] for given in found} > {"identify", "validate", "leaderboard", "run"}
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
COMP_WORDS=(neuronllm-eval lead); COMP_CWORD=1; _shtab_neuronllm_eval; echo "${COMPREPLY[@]}"
COMP_WORDS=(neuronllm-eval validate --sca); COMP_CWORD=2; _shtab_neuronllm_eval
echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["leaderboard", "--scale"]
    assert call("completion", "zsh")[1].startswith("#compdef neuronllm-eval")
    assert call("completion", "fish")[0] == 2
