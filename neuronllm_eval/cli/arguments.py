"""The flags of the command line, and the settings they make.

Names are lm_eval's wherever lm_eval has the flag. Three forms are narrower here: `--limit` is a
number of questions, `--batch_size` a number of prompts or `auto`, and `--seed` one whole number.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.utils import simple_parse_args_string

from neuronllm_eval import __version__
from neuronllm_eval.aqua.distractors import DISTRACTORS
from neuronllm_eval.aqua.prompt_format import LETTER_STYLES
from neuronllm_eval.aqua.settings import ON_BAD_DOC, ORDER_SETTINGS
from neuronllm_eval.attribution.integrated_gradients import AUTO_QUADRATURE, QUADRATURES
from neuronllm_eval.attribution.methods import METHODS, Method, make_method
from neuronllm_eval.engine.batching import AUTO
from neuronllm_eval.engine.build import ENGINES
from neuronllm_eval.errors import UsageError
from neuronllm_eval.interventions.condition_plan import ConditionPlan, Sweep
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    ENHANCE_SCALE,
    FEWEST_CONTROLS,
    SUPPRESS_SCALE,
    Scales,
)
from neuronllm_eval.models.precision import ATTRIBUTION_DTYPES
from neuronllm_eval.neurons.neuron_set import AMBIGUOUS
from neuronllm_eval.prompts import POSITIONS, SCORED
from neuronllm_eval.runs.settings import OVERLAP, RunSettings
from neuronllm_eval.runtime.resumable_work import CHECKPOINT_EVERY
from neuronllm_eval.stages.load_model import parse_model_args
from neuronllm_eval.stages.load_questions import AQUA_NAMES
from neuronllm_eval.stages.prepare import quadrature_of


def add_method_flags(group: argparse._ArgumentGroup) -> None:
    """Add them to a group of flags."""
    group.add_argument(
        "--method",
        nargs="+",
        default=["ace"],
        metavar="METHOD",
        help=f"what scores neurons: {', '.join(METHODS)} (default: ace). Several share one pass "
        "over the questions, and write to a folder each: OUTPUT_PATH/METHOD/TASK",
    )
    group.add_argument(
        "--method_args",
        nargs="+",
        default=[],
        metavar="SETTING=VALUE",
        help="settings of methods, such as threshold=0.2,top_v=10 (qrnca) or seed=1 (random)",
    )


def chosen_methods(names: Sequence[str], settings: Sequence[str]) -> tuple[Method, ...]:
    """The methods that these flags ask for.

    Args:
        names: values of `--method`, with commas between several.
        settings: values of `--method_args`; each goes to the methods that have it.

    Raises:
        UsageError: an unknown or repeated method, a setting that none of them has, or a value that
            it cannot have.
    """
    wanted = [name for group in names for name in group.split(",") if name]
    if not wanted or len(set(wanted)) < len(wanted):
        raise UsageError(
            f"method is {','.join(wanted)!r}",
            expected=f"each at most once: {', '.join(METHODS)}",
            remedy="check --method",
        )
    found = [make_method(name) for name in wanted]
    left = _parsed(settings)
    known = {field.name for method in found for field in dataclasses.fields(method)}
    if unknown := sorted(set(left) - known):
        raise UsageError(
            f"no chosen method has a setting {unknown[0]!r:.100}",
            expected=", ".join(sorted(known)) or f"none with --method {','.join(wanted)}",
            remedy="check --method_args",
        )
    return tuple(
        make_method(
            method.name,
            {
                field.name: left[field.name]
                for field in dataclasses.fields(method)
                if field.name in left
            },
        )
        for method in found
    )


def _parsed(settings: Sequence[str]) -> dict[str, Any]:
    try:
        return dict(simple_parse_args_string(",".join(settings)))
    except (ValueError, IndexError) as error:
        raise UsageError(
            f"--method_args {' '.join(settings)} cannot be read: {error}",
            expected="setting=value,setting=value",
            remedy="for example --method_args threshold=0.2,top_v=10",
        ) from error


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors have the form of this package's.

    Attributes:
        commands: parsers of its commands by name.
    """

    commands: Mapping[str, argparse.ArgumentParser] = {}

    def of_command(self, given: Sequence[str]) -> tuple[argparse.ArgumentParser, int]:
        """The parser of the command that a command line names, and how many words name it."""
        parser: argparse.ArgumentParser = self
        n_words = 0
        while isinstance(parser, Parser):
            known = parser.commands
            found = (at for at, word in enumerate(given) if at >= n_words and word in known)
            at = next(found, None)
            if at is None:
                break
            parser, n_words = known[given[at]], at + 1
        return parser, n_words

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but a subcommand refuses what it does not know by itself."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}"
                + (f" (perhaps {near[0]} is meant)" if near else "")
            )
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, which argparse would print in its own form."""
        raise UsageError(
            f"{self.prog}: {message}",
            expected="the commands, flags and values that its help lists",
            remedy=f"see `{self.prog} --help`",
        )


def some_names(text: str) -> list[str]:
    """Names with commas between them, of which there is at least one."""
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def a_path(text: str) -> str:
    """A path, which is not what an unset variable of the shell leaves."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def _numbers(flag: str, text: str | None) -> tuple[float, ...]:
    """The numbers of a flag whose values are joined by commas; none if it was not given."""
    if text is None:
        return ()
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"{flag} is {text!r}",
            expected="numbers with commas between them, and no space",
            remedy=f"write them as --{flag} 1,2",
        ) from error


def _batch_size(text: str) -> int | str:
    if text == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a whole number nor {AUTO} (lm_eval's auto:N is not known here)"
        ) from error


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object, such as '{\"n_proxies\": 5}'")
    return value


def add_model_flags(
    parser: argparse.ArgumentParser,
    limit: str = "questions per split (default: all)",
    default_limit: int | None = None,
) -> None:
    """Flags that every stage which runs a model has; `limit` says what `--limit` counts."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--batch_size",
        "-b",
        type=_batch_size,
        help="prompts per pass, or auto for as many as fit into memory (default: 1)",
    )
    group.add_argument("--device", help="such as cuda, cuda:0, cpu (default: cuda if there is one)")
    group.add_argument(
        "--engine", choices=ENGINES, help="auto takes fan_out where it is exact (default: auto)"
    )
    group.add_argument("--limit", "-L", type=int, default=default_limit, help=limit)
    add_verbosity(parser)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the stages that write a run."""
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print what the run would take, in time, memory and disk, and write nothing",
    )
    again = parser.add_argument_group("interruptions")
    either = again.add_mutually_exclusive_group()
    either.add_argument(
        "--resume",
        action="store_true",
        help="keep what is finished and go on with the rest; the default, but for runs that are "
        "all finished",
    )
    either.add_argument(
        "--overwrite", action="store_true", help="start anew and replace what is there"
    )
    again.add_argument(
        "--checkpoint_every",
        type=float,
        default=CHECKPOINT_EVERY,
        metavar="SECONDS",
        help="time between checkpoints (default: %(default)g)",
    )


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """`--verbosity`, as lm_eval has it."""
    parser.add_argument(
        "--verbosity",
        "-v",
        type=str.upper,
        choices=LOG_LEVELS,
        default="WARNING",
        help="log level (default: WARNING)",
    )


def add_identify_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of identification."""
    what = parser.add_argument_group("what to run")
    what.add_argument("--model", "-M", choices=("hf",), default="hf", help="only hf, as in lm_eval")
    what.add_argument(
        "--model_args",
        "-a",
        nargs="+",
        help="as for lm_eval --model hf: pretrained=NAME_OR_PATH[,dtype=...,revision=...] "
        "(default: the embedded demo model)",
    )
    what.add_argument(
        "--tasks",
        "-t",
        nargs="+",
        type=some_names,
        help="multiple-choice tasks or groups (default: demo)",
    )
    what.add_argument(
        "--include_path", nargs="+", type=a_path, default=[], help="folders of further tasks"
    )
    what.add_argument(
        "--output_path",
        "-o",
        type=a_path,
        help="a run directory per task is made in it (default: runs)",
    )
    prompt = parser.add_argument_group("prompts")
    prompt.add_argument(
        "--num_fewshot", "-f", type=int, help="demonstrations (default: the task's)"
    )
    prompt.add_argument(
        "--apply_chat_template",
        nargs="?",
        const=True,
        default=False,
        help="apply the tokenizer's chat template, or the one of this name",
    )
    prompt.add_argument("--system_instruction", help="text put before the task's description")
    prompt.add_argument(
        "--description", help="role and rule line before everything else (default: the task's)"
    )
    prompt.add_argument(
        "--metadata", type=_json, default={}, help="as for lm_eval: JSON added to tasks' metadata"
    )
    prompt.add_argument(
        "--overlap",
        choices=OVERLAP,
        default="refuse",
        help="questions that selection and validation split share (default: refuse)",
    )
    add_aqua_flags(parser)
    how = parser.add_argument_group("attribution and selection")
    add_method_flags(how)
    add_positions(
        how,
        RunSettings.positions,
        "where neurons are chosen, and with run_eval.py where they are suppressed and enhanced: at "
        "the positions whose logits are scored, or at all (slow, but for --method gradxact and tn)",
    )
    how.add_argument(
        "--quadrature",
        choices=[AUTO_QUADRATURE, *QUADRATURES],
        default=RunSettings.quadrature,
        help="rule for the path integral; auto takes gauss_lobatto, or gauss_legendre with one "
        "node less where the prompts show it to be better (default: auto)",
    )
    how.add_argument(
        "--n_steps",
        type=int,
        help="nodes (default: gauss_lobatto 5, gauss_legendre 4, right_riemann 16)",
    )
    how.add_argument(
        "--top_z",
        type=float,
        default=RunSettings.top_z,
        help="neurons per layer a question votes for: a count, or a share (default: 0.1)",
    )
    how.add_argument(
        "--top_k",
        help="good and bad neurons to choose: a count, or a share of all (default: 0.02); with "
        "run_eval.py also a list: chooses the largest, and judges each",
    )
    how.add_argument(
        "--ambiguous",
        choices=AMBIGUOUS,
        default="keep",
        help="neurons that some question calls good and another bad (default: keep)",
    )
    how.add_argument(
        "--attribution_dtype",
        choices=ATTRIBUTION_DTYPES,
        default=RunSettings.attribution_dtype,
        help="type of the model's weights while neurons are chosen; they are judged with the model "
        "as it is loaded (default: auto, the model's own)",
    )


def add_positions(parser: argparse._ActionsContainer, default: str | None, what: str) -> None:
    """`--positions`; `what` says what happens there."""
    help_text = f"{what} (default: {default or 'where they were chosen'})"
    parser.add_argument("--positions", choices=POSITIONS, default=default, help=help_text)


def add_aqua_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of how questions are asked; all but the first three are for AQUA tasks only."""
    group = parser.add_argument_group("questions (default: what the task's YAML says)")
    group.add_argument("--seed", type=int, help="seed of every random choice")
    group.add_argument("--selection_split", help="split that chooses neurons")
    group.add_argument(
        "--on_bad_doc",
        choices=ON_BAD_DOC,
        help="docs that cannot be asked: skip and count, or fail",
    )
    group.add_argument("--n_proxies", type=int, help="option-shuffled copies of each question")
    group.add_argument("--orders", choices=ORDER_SETTINGS, help="orders of the options to ask")
    group.add_argument(
        "--letter_style", choices=list(LETTER_STYLES), help="what stands before an option"
    )
    group.add_argument("--n_options", type=int, help="options of each question, 2 to 26")
    group.add_argument(
        "--distractors",
        choices=DISTRACTORS,
        help="wrong options where some are missing: other answers, of any or about the same length",
    )


def add_validation_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of validation; `--top_k` is apart, since identification has it too."""
    group = parser.add_argument_group("validation")
    group.add_argument(
        "--conditions",
        nargs="+",
        type=some_names,
        help=f"of {', '.join(CONDITIONS)} (default: all)",
    )
    group.add_argument(
        "--n_random",
        type=int,
        default=FEWEST_CONTROLS,
        help="random controls per condition (default: %(default)s)",
    )
    group.add_argument(
        "--suppress_scale", type=float, default=SUPPRESS_SCALE, help="factor (default: 0)"
    )
    group.add_argument(
        "--enhance_scale", type=float, default=ENHANCE_SCALE, help="factor (default: 2)"
    )
    group.add_argument(
        "--scale",
        help="factors to try besides, such as 0,0.5,1.5,2,4: those below 1 for suppress_good and "
        "suppress_bad, those above 1 for enhance_good and enhance_bad",
    )


def run_settings(options: argparse.Namespace) -> RunSettings:
    """The settings that parsed flags stand for; the task is filled in per leaf task.

    Raises:
        UsageError: a value that no task or model can make right.
    """
    from neuronllm_eval.demo import MODEL_DIR

    tasks = [name for group in options.tasks or [["demo"]] for name in group]
    top_k = _numbers("top_k", options.top_k) or (RunSettings.top_k,)
    first = chosen_methods(options.method, options.method_args)[0]
    model_args = options.model_args or [f"pretrained={MODEL_DIR}"]
    settings = RunSettings(
        model_args=parse_model_args(model_args),
        task=",".join(tasks),
        include_path=tuple(str(Path(path).resolve()) for path in options.include_path),
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
        system_instruction=options.system_instruction,
        description=options.description,
        metadata=options.metadata,
        overlap=options.overlap,
        limit=options.limit,
        **_aqua_values(options),
        batch_size=1 if options.batch_size is None else options.batch_size,
        device=options.device,
        engine=options.engine or "auto",
        method=first.name,
        method_args=dataclasses.asdict(first),
        positions=options.positions,
        quadrature=options.quadrature,
        n_steps=options.n_steps,
        top_z=options.top_z,
        top_k=max(top_k),
        ambiguous=options.ambiguous,
        attribution_dtype=options.attribution_dtype,
    )
    require_counts(settings)
    quadrature_of(settings)
    return settings


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Of these flags, the values that were given: they go before those of a run."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _aqua_values(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in AQUA_NAMES}


def aqua_settings(options: argparse.Namespace) -> RunSettings:
    """The settings of `tasks make`, which has a task and no model.

    Raises:
        UsageError: as `run_settings`.
    """
    settings = RunSettings({}, options.task, **_aqua_values(options))
    require_counts(settings)
    return settings


def require_counts(settings: RunSettings) -> None:
    """Raise UsageError if a count is below what it can be."""
    for name in ("num_fewshot", "n_proxies", "batch_size", "limit", "seed"):
        lowest = 0 if name in ("num_fewshot", "seed") else 1
        value = getattr(settings, name)
        if value not in (None, AUTO) and value < lowest:
            raise UsageError(
                f"{name} is {value}", expected=f"{lowest} or more", remedy=f"check --{name}"
            )


def require_launch(options: argparse.Namespace) -> None:
    """Raise UsageError if `--checkpoint_every` is no time."""
    if not 0 <= options.checkpoint_every < math.inf:
        raise UsageError(
            f"checkpoint_every is {options.checkpoint_every}",
            expected="seconds, 0 or more",
            remedy="check --checkpoint_every",
        )


def require_trust(settings: RunSettings, trust: bool) -> None:
    """Raise UsageError if a run asks for a repository's code and the user does not."""
    if settings.model_args.get("trust_remote_code", False) is not False and not trust:
        raise UsageError(
            f"the run of {settings.task} asks to run code of the repository of its model, "
            f"{settings.model_args.get('pretrained')}",
            expected="your consent, since a run directory may come from somebody else",
            remedy="pass --trust_remote_code if you trust that repository",
        )


def require_one_top_k(options: argparse.Namespace) -> None:
    """Raise UsageError if `--top_k` of `identify` is a list."""
    if len(_numbers("top_k", options.top_k)) > 1:
        raise UsageError(
            f"top_k is {options.top_k!r}",
            expected="one number for identify",
            remedy="give identify the largest, and the list to `neuronllm-eval validate`",
        )


def condition_plan(options: argparse.Namespace) -> ConditionPlan:
    """What validation scores, from parsed flags.

    Raises:
        UsageError: an unknown condition, a negative number of controls, a scale not finite, or
            numbers of neurons and factors that make no sweep.
    """
    chosen = [name for group in options.conditions or [CONDITIONS] for name in group]
    return ConditionPlan(
        conditions=tuple(chosen),
        n_random=options.n_random,
        seed=_seed(options),
        scales=Scales(options.suppress_scale, options.enhance_scale),
        sweep=Sweep(_numbers("top_k", options.top_k), _numbers("scale", options.scale)),
        positions=options.positions or SCORED,
    )


def plan_for(
    plan: ConditionPlan, options: argparse.Namespace, settings: RunSettings
) -> ConditionPlan:
    """The plan for a run: its conditions act where the neurons were chosen, if not said."""
    return dataclasses.replace(plan, positions=options.positions or settings.positions)


def _seed(options: argparse.Namespace) -> int:
    if options.seed is not None and options.seed < 0:
        raise UsageError(f"seed is {options.seed}", expected="0 or more", remedy="check --seed")
    return options.seed or 0


def add_version(parser: argparse.ArgumentParser) -> None:
    """`--version`."""
    parser.add_argument("--version", action="version", version=f"neuronllm-eval {__version__}")
