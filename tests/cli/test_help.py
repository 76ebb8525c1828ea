"""What `--help` and the shell's completion offer is what the commands take."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from neuronllm_eval.cli import commands
from neuronllm_eval.errors import UsageError
from tests.fixtures.cli import call, settings_of

PARSER = commands.main_parser()
NAMES = [command.name for command in commands.COMMANDS]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "command-line.md"
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


def examples(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  neuronllm-eval ")]


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_command_are_ones_that_it_takes(name):
    command = commands.BY_NAME[name]
    found = examples(command.epilog)
    assert found or name == "tasks make"
    for given in found:
        words = given[: given.index(">")] if ">" in given else given
        assert commands.parsed(PARSER, words)[0].name.startswith(name)


def test_the_examples_of_all_commands_are_ones_that_they_take():
    found = examples(commands.EXAMPLES)
    assert {given[0] for given in found} > {"identify", "validate", "compare", "run"}
    for given in found:
        if given[0] != "run":
            commands.parsed(PARSER, given)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_sentence_and_examples_in_its_help(name, capsys):
    with pytest.raises(SystemExit):
        PARSER.parse_args([*name.split(), "--help"])
    said = capsys.readouterr().out
    assert commands.BY_NAME[name].epilog in said
    assert commands.BY_NAME[name].text.split()[1] in said


@pytest.mark.parametrize("words", ["--help", "--version", "identify --help", "validate --lmit 3"])
def test_help_and_slips_load_nothing_heavy(words):
    heavy = "('torch', 'transformers', 'lm_eval', 'pandas', 'scipy')"
    script = (
        "import sys; from neuronllm_eval.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


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


def section_of(name: str) -> str:
    """What the page on the command line says of a command."""
    return PAGE.read_text().split(f"\n## neuronllm-eval {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", NAMES)
def test_help_page_and_behaviour_agree_on_the_file(name, tmp_path, capsys):
    config = tmp_path / "own.yaml"
    config.write_text("verbosity: ERROR\n")
    given = [*name.split(), *ARGUMENTS.get(name, []), f"--config={config}"]
    with pytest.raises(SystemExit):
        PARSER.parse_args([*name.split(), "--help"])
    is_listed = "--config FILE" in capsys.readouterr().out
    text = " ".join(section_of(name).split())
    shared = re.search(r"\*other\*[^:]*: as for", text) is not None  # a command that has it
    assert ("`--config FILE`" in text or shared) == is_listed
    if is_listed:
        assert settings_of(*given)[-1].verbosity == "ERROR"
    else:
        assert name in ("tasks", "completion")
        with pytest.raises(UsageError, match="unrecognized arguments: --config="):
            settings_of(*given, *(["bash"] if name == "completion" else []))


def test_a_file_has_the_values_of_the_flags_and_the_command_line_goes_before(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(
        "conditions: [suppress_good, enhance]\ntop_k: [10, 50]\nscale: 0.5\nseed: 3\n"
        "batch_size: auto\noverwrite: true\nverbosity: error\npositions:\n"
    )
    here = ["--config", str(config)]
    for given in ([*here, "runs/q"], ["runs/q", *here], ["--seed=4", *here, "--", "runs/q"]):
        asked, how, log = settings_of("validate", *given)
        assert str(asked.run_dir) == "runs/q"
        assert asked.conditions == ("suppress_good", "enhance")
        assert (asked.top_k, asked.scale) == ((10, 50), (0.5,))
        assert asked.seed == (4 if "--seed=4" in given else 3)
        assert (asked.batch_size, asked.positions) == ("auto", None)
        assert (how.overwrite, log.verbosity) == (True, "ERROR")


def test_a_file_of_pairs_and_mappings(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(
        "model_args: {pretrained: m, dtype: float32}\nmetadata: {n_proxies: 2}\ntasks: demo\n"
        "apply_chat_template: true\ninclude_path: a\nmethod_args: top_v=3\nmethod: [qrnca, tn]\n"
    )
    asked = settings_of("identify", "--config", config)[0]
    assert asked.model_args == {"pretrained": "m", "dtype": "float32"}
    assert (asked.metadata, asked.method_args) == ({"n_proxies": 2}, {"top_v": 3})
    assert (asked.tasks, asked.method) == (("demo",), ("qrnca", "tn"))
    assert (asked.include_path, asked.apply_chat_template) == ((Path("a"),), True)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("conditions: [enhance]", "has 'conditions'"),
        ("run_dir: x", "has 'run_dir'"),
        ("limit: few", "limit is 'few'"),
        ("limit: true", "limit is True"),
        ("dry_run: 5", "dry_run is 5"),
        ("- 1", "holds [1]"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_that_is_refused(tmp_path, content, part):
    config = tmp_path / "own.yaml"
    config.write_text(content)
    with pytest.raises(UsageError) as caught:
        settings_of("identify", "--config", config)
    assert part in str(caught.value)
