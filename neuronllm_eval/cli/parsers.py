"""The parsers of the two entry points: which commands there are, and which flags each takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from neuronllm_eval.cli import arguments
from neuronllm_eval.cli import compare as compare_command
from neuronllm_eval.cli import explain as explain_command
from neuronllm_eval.cli import export as export_command
from neuronllm_eval.cli import parsers as help_examples
from neuronllm_eval.cli.config_file import add_config_flag

ALL = """examples:
  # the embedded model on its four families of questions
  neuronllm-eval identify --tasks demo --output_path runs/demo
  neuronllm-eval validate runs/demo

  # a model of the Hub on a multiple-choice task of the harness
  neuronllm-eval identify --tasks mmlu_professional_law --selection_split validation \\
      --model_args pretrained=meta-llama/Llama-3.2-1B --batch_size 16 --output_path runs/law
  neuronllm-eval validate runs/law

  # what the top neurons do, and all runs in one table
  neuronllm-eval explain runs/demo --batch_size 48
  neuronllm-eval compare --rank runs

  # lm_eval's own command line, with the masked model registered
  neuronllm-eval run --model neuronllm --tasks demo_topic \\
      --model_args pretrained=M,neurons=runs/demo/demo_topic,condition=suppress_good

`neuronllm-eval COMMAND --help` has examples of each command.
"""

# By command, pairs of what is done and how, without `neuronllm-eval` and the command's name.
_OF_COMMAND: Mapping[str, tuple[tuple[str, str], ...]] = {
    "identify": (
        (
            "the AQUA form of a harness task, on a model of the Hub",
            "--tasks aqua:mmlu_professional_law --batch_size auto \\\n"
            "      --model_args pretrained=meta-llama/Llama-3.2-1B,dtype=bfloat16 -o runs/law",
        ),
        ("what that would take, measured on a few prompts", "--tasks aqua_arc_challenge --dry_run"),
        (
            "several methods from one pass, a run directory each",
            "--tasks demo_topic --method ace,kn,tn -o runs/methods",
        ),
    ),
    "validate": (
        ("all conditions, each beside 20 random controls", "runs/demo"),
        (
            "every condition at these numbers of neurons and factors",
            "runs/demo --top_k 10,20,40 --scale 0,0.5,1.5,2,4",
        ),
        ("two conditions, on every position", "runs/demo --conditions degrade,enhance "
         "--positions all"),
    ),
    "report": (("write summary.json, report.md and report.html again", "runs/demo"),),
    "verify": (
        ("ask 20 questions of each split again", "runs/demo"),
        ("compute all scores again", "runs/demo/demo_topic --limit 100000"),
    ),
    "explain": (("the first ten good and bad neurons of four tasks", "runs/demo --top_n 10"),),
    "compare-methods": (
        (
            "three methods, two numbers of neurons, three seeds",
            "--tasks demo_topic --method ace,gradxact,kn --top_k 10,41 --seeds 0 1 2",
        ),
        ("the paper's setting", "--config paper"),
    ),
    "compare": (
        ("methods of all runs below a folder, tested against kn", "runs/methods --against kn"),
        ("all runs below a folder, ranked", "runs --rank"),
        (
            "two conditions by model, ranked, as LaTeX",
            "runs --rank --group_by model --conditions degrade,enhance --format latex",
        ),
    ),
    "export": (
        (
            "a PEFT adapter for `lm_eval --model_args pretrained=M,peft=out/enhance`",
            "runs/demo/demo_topic --condition enhance -o out/enhance",
        ),
        (
            "a whole checkpoint for any loader",
            "runs/demo/demo_topic --condition enhance --format merged -o out/merged",
        ),
    ),
    "tasks": (
        ("the folder of the packaged tasks", ""),
        ("an AQUA task that stock lm_eval runs", "make belebele_eng_Latn -o my_tasks"),
    ),
    "completion": (
        (
            "bash",
            "bash > ~/.local/share/bash-completion/completions/neuronllm-eval",
        ),
        ("zsh, with ~/.zfunc in fpath", "zsh > ~/.zfunc/_neuronllm-eval"),
    ),
}  # fmt: skip


def of_command(name: str) -> str:
    """The examples of a command; empty if there are none."""
    pairs = _OF_COMMAND.get(name, ())
    lines = [f"  # {what}\n  neuronllm-eval {name} {how}".rstrip() for what, how in pairs]
    return "examples:\n" + "\n\n".join(lines) + "\n" if lines else ""


# Questions of each split that `verify` asks again.
DEFAULT_VERIFIED = 20
# Commands that have hardly a flag, and no `--config`.
WITHOUT_CONFIG = ("tasks", "completion")
SHELLS = ("bash", "zsh", "tcsh")
Command = Callable[[argparse.Namespace], int]


def run_eval_parser() -> argparse.ArgumentParser:
    """The parser of `run_eval.py`."""
    parser = arguments.Parser(
        prog="run_eval.py",
        description="Identify, validate and report in one go. Without arguments (or with --dry_run "
        "alone): the demo.",
        allow_abbrev=False,
    )
    add_config_flag(parser)
    arguments.add_identify_flags(parser)
    arguments.add_validation_flags(parser)
    arguments.add_model_flags(parser)
    arguments.add_run_flags(parser)
    return parser


def main_parser(commands: Mapping[str, Command]) -> arguments.Parser:
    """The parser of `neuronllm-eval`.

    Args:
        commands: by name, what each command does; parsed options have it as `execute`.
    """
    parser = arguments.Parser(
        prog="neuronllm-eval",
        description="Find the neurons that help or hurt a language model at a multiple-choice "
        "task, and measure what suppressing or enhancing them does.",
        epilog=help_examples.ALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_version(parser)
    added = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, what: str) -> arguments.Parser:
        own: arguments.Parser = added.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=help_examples.of_command(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        own.set_defaults(execute=commands[name])
        if name not in WITHOUT_CONFIG:
            add_config_flag(own)
        return own

    identify = command("identify", "find a task's good and bad neurons")
    arguments.add_identify_flags(identify)
    arguments.add_model_flags(identify)
    arguments.add_run_flags(identify)

    validate = command("validate", "judge a run's neurons on its validation split")
    _add_run_dir(validate)
    _add_trust(validate)
    validate.add_argument(
        "--top_k",
        help="use the first so many good and bad neurons: a count, a share of all, or a list of "
        "either, such as 10,50,100, to judge each (default: all that were chosen)",
    )
    arguments.add_positions(validate, None, "where neurons are suppressed and enhanced")
    validate.add_argument("--seed", type=int, help="seed of the random controls")
    arguments.add_validation_flags(validate)
    arguments.add_model_flags(validate, "questions (default: the run's own limit)")
    arguments.add_run_flags(validate)

    report = command("report", "print and write a run's report again")
    _add_run_dir(report)
    arguments.add_verbosity(report)

    verify = command(
        "verify", "compute some of a run again, and say whether its files are what comes out"
    )
    _add_run_dir(verify)
    _add_trust(verify)
    arguments.add_model_flags(
        verify,
        "questions of each split to ask again; as many as there are computes the scores again as "
        "a whole (default: %(default)s)",
        DEFAULT_VERIFIED,
    )

    explain = command("explain", "say what the top neurons of finished runs do")
    _add_run_dir(explain, nargs="+")
    _add_trust(explain)
    explain_command.add_flags(explain)

    compare_command.add_methods_flags(
        command(
            "compare-methods",
            "run rival methods on the same questions, and compare what their neurons do",
        )
    )

    compare = command("compare", "compare finished runs of any models, tasks and methods")
    _add_run_dir(compare, nargs="+")
    compare_command.add_flags(compare)

    export = command("export", "write a condition as a PEFT adapter or a merged checkpoint")
    _add_run_dir(export)
    _add_trust(export)
    export_command.add_flags(export)

    tasks = command("tasks", "print the folder of the packaged tasks, or make AQUA tasks of others")
    arguments.add_verbosity(tasks)
    making = tasks.add_subparsers(metavar="make")
    make = making.add_parser(
        "make",
        help="write a multiple-choice task or group as AQUA tasks that stock lm_eval runs",
        allow_abbrev=False,
    )
    _add_make_flags(make)
    make.set_defaults(execute=commands["tasks make"])
    tasks.commands = making.choices

    completion = command("completion", "print a script that completes commands and flags")
    completion.add_argument("shell", choices=SHELLS, help="for which shell")
    arguments.add_verbosity(completion)

    added.add_parser("run", help="lm_eval's own command line, with the model `neuronllm`")
    parser.commands = added.choices
    return parser


def _add_make_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="a task or group of the harness")
    parser.add_argument(
        "--output_path",
        "-o",
        required=True,
        type=arguments.a_path,
        help="folder for the YAML, for --include_path",
    )
    parser.add_argument(
        "--include_path",
        nargs="+",
        type=arguments.a_path,
        default=[],
        help="folders of further tasks",
    )
    arguments.add_aqua_flags(parser)
    arguments.add_verbosity(parser)
    add_config_flag(parser)


def _add_run_dir(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "run_dir",
        nargs=nargs,
        type=arguments.a_path,
        help="a run directory, or a folder that has runs at any depth",
    )


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run code of the model's repository, if the run's run.yaml asks for that",
    )
