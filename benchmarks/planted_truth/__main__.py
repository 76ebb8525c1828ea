"""Plant neurons of known function in the embedded model, and test which methods find them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.planted_truth.measure import (
    FLOOR,
    SKILL_KINDS,
    WIDE,
    Promise,
    SingleEffect,
    Trial,
    promises,
    run_trial,
)
from benchmarks.planted_truth.neuron_kinds import CORRECT, INCORRECT, POSITION
from neuronllm_eval.errors import NeuronLLMError, UsageError
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.models.fingerprints import versions
from neuronllm_eval.prompts import Question
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.process import bar
from neuronllm_eval.stages.load import (
    load_model,
    load_run_task,
    selection_questions,
    validation_questions,
)

logger = logging.getLogger(__name__)
TASK = "demo_knowledge"
N_LETTERS = 4
# Questions of the selection split on which planted neurons are fitted.
N_FITTING = 100
DEFAULT_LIMIT = 40
DEFAULT_STRENGTHS = "1,0.125"
# `alike` neurons cannot be planted at more than this in the embedded model.
STRONGEST = 1.0
_KINDS_NOTE = (
    "Correct neurons write the gold letter, incorrect ones another, alike ones all letters, silent "
    "ones nothing, position ones their letter whatever the question "
    "(benchmarks/planted_truth/README.md)."
)
_SCHEMA_VERSION = 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "--device", help="such as cuda, cuda:0, cpu (default: cuda if there is one)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="which neurons are replaced, and orders"
    )
    parser.add_argument(
        "--limit", "-L", type=int, default=DEFAULT_LIMIT, help="questions (default: %(default)s)"
    )
    parser.add_argument(
        "--strengths",
        default=DEFAULT_STRENGTHS,
        help=f"log-nats by which each planted neuron moves its letters, at most {STRONGEST:g}; "
        f"promises are checked from {FLOOR:g} up (default: %(default)s)",
    )
    parser.add_argument("--output_path", "-o", type=Path, help="a file for the figures, as JSON")


def measure(options: argparse.Namespace, show: Callable[[str], object]) -> int:
    """Plant neurons, score them by every method, and show the table.

    Returns:
        the exit code: 1 if a promise is broken at `FLOOR` or above it.

    Raises:
        UsageError: invalid numbers.
    """
    from neuronllm_eval.demo import MODEL_DIR

    strengths = _strengths(options.strengths)
    if options.limit < 1 or options.seed < 0:
        raise UsageError(
            f"limit is {options.limit}, seed is {options.seed}",
            expected="a limit of 1 or more, a seed of 0 or more",
            remedy="check --limit and --seed",
        )
    if options.output_path and options.output_path.is_dir():
        raise UsageError(
            f"{options.output_path} is a folder",
            expected="a file for the figures, such as planted_truth.json",
            remedy="check --output_path",
        )
    settings = RunSettings(
        model_args={"pretrained": str(MODEL_DIR)},
        task=TASK,
        n_proxies=N_LETTERS,
        seed=options.seed,
        device=options.device,
    )
    torch.set_num_threads(1)  # the embedded model is too small for several
    model, task = load_model(settings), load_run_task(settings)
    fitting = selection_questions(model.lm, settings.model_copy(update={"limit": N_FITTING}), task)
    limited = settings.model_copy(update={"limit": options.limit})
    questions = validation_questions(model.lm, limited, task).questions
    trials = []
    for strength in bar(iterable=strengths, desc="planted truth", unit="strength", leave=False):
        logger.info("planting at %g log-nats", strength)
        trials.append(
            run_trial(model.lm.model, fitting.questions, questions, strength, options.seed)
        )
    checked = [promise for each in trials for promise in promises(each)]
    show(report(trials, checked, questions))
    if options.output_path:
        options.output_path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.output_path, _json(trials, checked, options))
    return 0 if all(promise.kept for promise in checked) else 1


def _strengths(text: str) -> list[float]:
    try:
        values = [float(item) for item in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise UsageError(
            f"strengths is {text!r:.100}",
            expected="positive numbers with commas between them",
            remedy=f"for example --strengths {DEFAULT_STRENGTHS}",
        )
    if max(values) > STRONGEST:
        raise UsageError(
            f"strengths is {text!r:.100}, and neurons that move all letters alike cannot be scaled "
            f"to more than {STRONGEST:g} log-nat in the embedded model",
            expected=f"numbers above 0, at most {STRONGEST:g}",
            remedy=f"for example --strengths {DEFAULT_STRENGTHS}",
        )
    return values


def report(
    trials: Sequence[Trial], checked: Sequence[Promise], questions: Sequence[Question]
) -> str:
    """The tables of recovery and of promises."""
    rows = [
        [
            f"{trial.strength:g}",
            method,
            *(f"{kinds[kind].at_k:.2f} / {kinds[kind].wide:.2f}" for kind in SKILL_KINDS),
            *(f"{kinds[kind].whole:.2f}" for kind in (CORRECT, INCORRECT)),
            f"{trial.unshuffled[method]:.2f}",
            f"{trial.shuffled[method]:.2f}",
        ]
        for trial in trials
        for method, kinds in trial.kinds.items()
    ]
    whole = (f"{CORRECT}, all layers", f"{INCORRECT}, all layers")
    positions = (f"{POSITION}, one order", f"{POSITION}, shuffled")
    heads = ("strength", "method", *SKILL_KINDS, *whole, *positions)
    rows_of_promises = [
        [p.name, f"{p.strength:g}", "yes" if p.kept else "NO", p.figure] for p in checked
    ]
    broken = sum(not promise.kept for promise in checked)
    verdict = f"{broken} of {len(checked)} promises are broken" if broken else "All promises hold"
    if not checked:
        verdict = f"No promise is made below a strength of {FLOOR:g}"
    measured = "; ".join(
        f"{trial.strength:g}: {trial.effects[0]:.2f} to {trial.effects[1]:.2f}" for trial in trials
    )
    parts = [
        f"Planted truth: {TASK}, {len(questions)} questions in {N_LETTERS} orders each.",
        markdown_table(heads, rows),
        f"Precision@K, which is recall@K, of K planted neurons / recall among {WIDE:.0%} of the "
        f"layers planted in; all layers: precision@K among the neurons of the whole model; for "
        f"{POSITION} recall among the first good. Smallest and largest effect of a planted neuron "
        f"on its letters, in log-nats, by strength: {measured}. {_KINDS_NOTE}",
        *(_ahead(trial) for trial in trials if trial.ahead_effects),
        markdown_table(("promise", "strength", "holds", "figure"), rows_of_promises),
        f"{verdict}.",
    ]
    return "\n\n".join(part for part in parts if part)


def _ahead(trial: Trial) -> str:
    """The neurons that `ace` ranks before planted ones, over all layers."""

    def span(effects: Sequence[SingleEffect], column: int) -> str:
        ends = {f"{end(each[column] for each in effects):.4f}": None for end in (min, max)}
        return " to ".join(ends)

    ahead, planted = trial.ahead_effects, trial.planted_effects
    neurons = "is 1 neuron" if len(ahead) == 1 else f"are {len(ahead)} neurons"
    return (
        f"Strength {trial.strength:g}, all layers: among the first {len(planted)} of ace {neurons} "
        f"of earlier layers, with attributions of {span(ahead, 0)} log-nats per prompt and "
        f"single-neuron effects of {span(ahead, 1)}. The {CORRECT} ones have {span(planted, 0)} "
        f"and {span(planted, 1)}."
    )


def _json(trials: Sequence[Trial], checked: Sequence[Promise], options: argparse.Namespace) -> str:
    values: dict[str, Any] = {
        "schema_version": _SCHEMA_VERSION,
        "versions": versions(),
        "task": TASK,
        "limit": options.limit,
        "seed": options.seed,
        "floor": FLOOR,
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "promises": [dataclasses.asdict(promise) for promise in checked],
    }
    return json.dumps(values, indent=2) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.planted_truth", description=__doc__)
    add_flags(parser)
    try:
        return measure(parser.parse_args(argv), print)
    except NeuronLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
