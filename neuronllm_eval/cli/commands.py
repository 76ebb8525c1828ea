"""The commands of `neuronllm-eval`: which settings each takes, what runs it, and examples.

A command's settings are models; those of the stages stand in `runs.settings`, others here. Its code
is imported when it runs, so that help and refusals of a wrong flag need neither torch nor lm_eval.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neuronllm_eval import __version__
from neuronllm_eval.cli.flags import LogSettings, Parser, add_config_flag, add_flags, read
from neuronllm_eval.comparison.settings import CompareSettings
from neuronllm_eval.formats.settings_model import (
    FilePath,
    FilePaths,
    Integers,
    Names,
    Settings,
    changed,
    setting,
)
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED
from neuronllm_eval.runs.settings import (
    METHODS,
    ComputeSettings,
    ConditionSettings,
    EvaluateSettings,
    IdentifySettings,
    LaunchSettings,
    QuestionSettings,
    StoredRunSettings,
    ValidateSettings,
)

_LIMIT = ComputeSettings.model_fields["limit"]
_exported = partial(setting, group="what to export")
_written = partial(setting, group="where to")


class ModelTypeSettings(Settings):
    """For those who come from lm_eval."""

    model: str = setting(
        "hf", "only hf, as in lm_eval", group="what to run", flags=("-M",), choices=("hf",)
    )


class ReportSettings(Settings):
    """Settings of `report`."""

    run_dir: FilePath = changed(StoredRunSettings.model_fields["run_dir"])
    yes: bool = setting(False, "rewrite the reports of several runs, where there are several")


class VerifySettings(StoredRunSettings, ComputeSettings):
    """Settings of `verify`."""

    limit: int = changed(
        _LIMIT,
        default=20,
        text="questions of each split to recompute; as many as there are recomputes all scores",
    )


class ExplainSettings(ComputeSettings):
    """Settings of `explain`."""

    run_dir: FilePaths = changed(StoredRunSettings.model_fields["run_dir"], nargs="+")
    trust_remote_code: bool = changed(StoredRunSettings.model_fields["trust_remote_code"])
    top_n: int = setting(10, "good and bad neurons of each run to explain", ge=1)
    limit: int = changed(
        _LIMIT,
        default=100,
        text="selection questions to recompute, for activations and for the questions that neurons "
        "helped and hurt most",
    )


class ExportSettings(StoredRunSettings):
    """Settings of `export`; names of a condition are those of `neuronllm`'s arguments."""

    condition: str = _exported(
        ...,
        f"of {', '.join(name for name in CONDITIONS if name != UNMASKED)}; a point such as "
        "suppress_good.k50.x0.5; or either with .random_SEED or .matched_SEED",
    )
    scale: float | None = _exported(None, "factor of the condition's only operation")
    suppress_scale: float | None = _exported(None, "factor of suppressed neurons", unset="0")
    enhance_scale: float | None = _exported(None, "factor of enhanced neurons", unset="2")
    top_k: int | None = _exported(None, "use the first so many good and bad neurons", unset="all")
    format: str = _written(
        "peft", "an IA3 adapter, or a full checkpoint", choices=("peft", "merged")
    )
    output_path: FilePath = _written(..., "folder to make", flags=("-o",))
    overwrite: bool = _written(False, "replace an existing export")
    device: str = _written("cpu", "where a merged checkpoint is computed")


class CompareMethodsSettings(EvaluateSettings):
    """Settings of `compare-methods`: `run_eval.py` for every model, seed and method."""

    models: tuple[str, ...] = setting(
        (),
        "compare on each of these; --model_args then has what they have in common, and what one "
        "needs beside follows its name, as in NAME,revision=main",
        group="repeats",
        nargs="+",
        metavar="NAME_OR_PATH",
    )
    seeds: Integers = setting(
        (),
        "repeat with each of these in place of --seed",
        group="repeats",
        nargs="+",
        metavar="SEED",
        expected="whole numbers of 0 or more, each once",
    )
    against: str | None = changed(CompareSettings.model_fields["against"], group="repeats")
    output_path: FilePath = changed(
        IdentifySettings.model_fields["output_path"], default=Path("runs/comparison")
    )
    method: Names = changed(IdentifySettings.model_fields["method"], default=METHODS, shown="all")
    n_random: int = changed(ConditionSettings.model_fields["n_random"], default=0)


class MakeTasksSettings(QuestionSettings):
    """Settings of `tasks make`."""

    task: str = setting(..., "a task or group of the harness", positional=True)
    output_path: FilePath = setting(..., "folder for the YAML, for --include_path", flags=("-o",))
    include_path: FilePaths = setting((), "folders of further tasks", nargs="+")


class CompletionSettings(Settings):
    """Settings of `completion`."""

    shell: str = setting(..., "for which shell", positional=True, choices=("bash", "zsh", "tcsh"))


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: of one or two words.
        text: what it does, for the help.
        run: `module:function` in this folder; called with its settings and a function that prints.
        models: its settings, in the order in which `run` gets them.
        epilog: examples, for the help.
        with_config: whether it takes `--config`.
    """

    name: str
    text: str
    run: str
    models: tuple[type[Settings], ...] = ()
    epilog: str = ""
    with_config: bool = True

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add its flags to its parser."""
        if self.with_config:
            add_config_flag(parser)
        add_flags(parser, (*self.models, LogSettings))


def load(name: str) -> Callable[..., Any]:
    """The function that `module:function` names, in this folder."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"neuronllm_eval.cli.{module}"), function)


_IDENTIFY = Command(
    "identify",
    "find a task's good and bad neurons",
    "evaluate:identify",
    (IdentifySettings, LaunchSettings, ModelTypeSettings),
    """examples:
  # the AQUA form of a harness task, on a model of the Hub
  neuronllm-eval identify --tasks aqua:mmlu_professional_law --batch_size auto \\
      --model_args pretrained=meta-llama/Llama-3.2-1B,dtype=bfloat16 -o runs/law

  # what that would take, measured on a few prompts
  neuronllm-eval identify --tasks aqua_arc_challenge --dry_run

  # several methods from one pass, a run directory each
  neuronllm-eval identify --tasks demo_topic --method ace,kn,tn -o runs/methods
""",
)
RUN_EVAL = Command(
    "run_eval.py",
    "identify, validate and report in one go. Without arguments (or with --dry_run alone): the "
    "demo",
    "evaluate:run_eval",
    (EvaluateSettings, LaunchSettings, ModelTypeSettings),
)
COMMANDS = (
    _IDENTIFY,
    Command(
        "validate",
        "measure what a run's neurons do on its validation split",
        "evaluate:validate",
        (ValidateSettings, LaunchSettings),
        """examples:
  # all conditions, each beside 20 random controls
  neuronllm-eval validate runs/demo

  # every condition at these numbers of neurons and factors
  neuronllm-eval validate runs/demo --top_k 10,20,40 --scale 0,0.5,1.5,2,4

  # two conditions, on every position
  neuronllm-eval validate runs/demo --conditions degrade,enhance --positions all
""",
    ),
    Command(
        "report",
        "print a run's report and rewrite its files",
        "evaluate:report",
        (ReportSettings,),
        """examples:
  # rewrite summary.json, report.md and report.html
  neuronllm-eval report runs/demo
""",
    ),
    Command(
        "verify",
        "recompute part of a run, and compare with its files",
        "evaluate:verify",
        (VerifySettings,),
        """examples:
  # recompute 20 questions of each split
  neuronllm-eval verify runs/demo

  # recompute all scores
  neuronllm-eval verify runs/demo/demo_topic --limit 100000
""",
    ),
    Command(
        "explain",
        "say what the top neurons of finished runs do",
        "evaluate:explain",
        (ExplainSettings,),
        """examples:
  # the first ten good and bad neurons of four tasks
  neuronllm-eval explain runs/demo --top_n 10
""",
    ),
    Command(
        "compare-methods",
        "run rival methods on the same questions, and compare what their neurons do",
        "compare:compare_methods",
        (CompareMethodsSettings, LaunchSettings, ModelTypeSettings),
        """examples:
  # three methods, two numbers of neurons, three seeds
  neuronllm-eval compare-methods --tasks demo_topic --method ace,gradxact,kn --top_k 10,41 \\
      --seeds 0 1 2

  # the paper's setting
  neuronllm-eval compare-methods --config paper
""",
    ),
    Command(
        "compare",
        "compare finished runs of any models, tasks and methods",
        "compare:compare",
        (CompareSettings,),
        """examples:
  # methods of all runs below a folder, tested against kn
  neuronllm-eval compare runs/methods --against kn

  # all runs below a folder, ranked
  neuronllm-eval compare runs --rank

  # two conditions by model, ranked, as LaTeX
  neuronllm-eval compare runs --rank --group_by model --conditions degrade,enhance --format latex
""",
    ),
    Command(
        "export",
        "write a condition as a PEFT adapter or a merged checkpoint",
        "export:export",
        (ExportSettings,),
        """examples:
  # a PEFT adapter for `lm_eval --model_args pretrained=M,peft=out/enhance`
  neuronllm-eval export runs/demo/demo_topic --condition enhance -o out/enhance

  # a whole checkpoint for any loader
  neuronllm-eval export runs/demo/demo_topic --condition enhance --format merged -o out/merged
""",
    ),
    Command(
        "tasks",
        "print the folder of the packaged tasks, or make AQUA tasks of others",
        "evaluate:print_folder",
        (),
        """examples:
  # the folder of the packaged tasks
  neuronllm-eval tasks

  # an AQUA task that stock lm_eval runs
  neuronllm-eval tasks make belebele_eng_Latn -o my_tasks
""",
        with_config=False,
    ),
    Command(
        "tasks make",
        "write a multiple-choice task or group as AQUA tasks that stock lm_eval runs",
        "evaluate:make",
        (MakeTasksSettings,),
    ),
    Command(
        "completion",
        "print a script that completes commands and flags",
        "evaluate:complete",
        (CompletionSettings,),
        """examples:
  # bash
  neuronllm-eval completion bash > ~/.local/share/bash-completion/completions/neuronllm-eval

  # zsh, with ~/.zfunc in fpath
  neuronllm-eval completion zsh > ~/.zfunc/_neuronllm-eval
""",
        with_config=False,
    ),
)
BY_NAME = {command.name: command for command in (*COMMANDS, RUN_EVAL)}

EXAMPLES = """examples:
  # the embedded model on its four families of questions
  neuronllm-eval identify --tasks demo --output_path runs/demo
  neuronllm-eval validate runs/demo

  # a model of the Hub on a multiple-choice task of the harness
  neuronllm-eval identify --tasks mmlu_professional_law --selection_split validation \\
      --model_args pretrained=meta-llama/Llama-3.2-1B --batch_size 16 --output_path runs/law
  neuronllm-eval validate runs/law

  # what the top neurons do, and all runs in one table
  neuronllm-eval explain runs/demo --batch_size 48
  neuronllm-eval compare runs --rank

  # lm_eval's own command line, with the masked model registered
  neuronllm-eval run --model neuronllm --tasks demo_topic \\
      --model_args pretrained=M,neurons=runs/demo/demo_topic,condition=suppress_good

`neuronllm-eval COMMAND --help` has examples of each command.
"""


def run_eval_parser() -> Parser:
    """The parser of `run_eval.py`."""
    text = RUN_EVAL.text
    parser = Parser(prog="run_eval.py", description=f"{_sentence(text)}", allow_abbrev=False)
    RUN_EVAL.add_flags(parser)
    parser.set_defaults(command="run_eval.py")
    return parser


def main_parser(words: Sequence[str] | None = None) -> Parser:
    """The parser of `neuronllm-eval`.

    Args:
        words: a command line; only the commands among its words get their flags. All if None.
    """
    parser = Parser(
        prog="neuronllm-eval",
        description="Find the neurons that help or hurt a language model at a multiple-choice "
        "task, and measure what suppressing or enhancing them does.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"neuronllm-eval {__version__}")
    added = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    parsers: dict[str, Any] = {}
    for command in COMMANDS:
        parent, _, name = command.name.rpartition(" ")
        group = parsers[parent].add_subparsers(metavar=name) if parent else added
        own = group.add_parser(
            name,
            help=command.text,
            description=_sentence(command.text),
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parsers[command.name] = own
        own.set_defaults(command=command.name)
        if parent:
            parsers[parent].commands = group.choices
        if words is None or set(command.name.split()) <= set(words):
            command.add_flags(own)
    added.add_parser("run", help="lm_eval's own command line, with the model `neuronllm`")
    parser.commands = added.choices
    return parser


def parsed(parser: Parser, words: Sequence[str]) -> tuple[Command, list[Any]]:
    """The command that a command line names, and its settings; `LogSettings` last.

    Raises:
        UsageError: a flag, a file of flags or a value cannot be used.
    """
    options = parser.parse_args(words)
    command = BY_NAME[options.command]
    program = f"{parser.prog} {command.name}" if command is not RUN_EVAL else parser.prog
    return command, read(options, (*command.models, LogSettings), program)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
