"""`neuronllm-eval explain`: what the top neurons of finished runs do, and how far they share them.

All that is stored is read and compared before the first model is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from neuronllm_eval.cli import arguments
from neuronllm_eval.errors import UsageError
from neuronllm_eval.explain.explanation import SetOverlap
from neuronllm_eval.explain.explanation_markdown import overlap_table, render, summary
from neuronllm_eval.explain.top_tokens import read_tokens, tokens_json, with_explanation
from neuronllm_eval.neurons.overlap import COMPARED, overlap
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.directory import write_whole
from neuronllm_eval.runs.search import runs_below
from neuronllm_eval.runtime.distributed import own_rank
from neuronllm_eval.stages.explain import StoredRun, explain_run
from neuronllm_eval.stages.load_model import LoadedModel, load_model
from neuronllm_eval.stages.load_questions import load_run_task, selection_questions

DEFAULT_TOP_N = 10
DEFAULT_ASKED = 100  # questions


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `explain`, beside the run directories."""
    parser.add_argument(
        "--top_n",
        type=int,
        default=DEFAULT_TOP_N,
        help="good and bad neurons of each run to explain (default: %(default)s)",
    )
    arguments.add_model_flags(
        parser,
        "questions that chose the neurons to ask again, for activations and for what was helped "
        "and hurt most (default: %(default)s)",
        DEFAULT_ASKED,
    )


def explain(options: argparse.Namespace, show: Callable[[str], object]) -> int:
    """Explain every run at `options.run_dir`; returns the exit code.

    Args:
        options: parsed flags.
        show: is told what people are to read.
    """
    if options.top_n < 1:
        raise UsageError(f"top_n is {options.top_n}", expected="1 or more", remedy="check --top_n")
    given = arguments.given(options, "batch_size", "device", "engine")
    runs = runs_below(map(Path, options.run_dir))
    stored = [StoredRun.load(run, given) for run in runs]
    for each in stored:
        arguments.require_counts(dataclasses.replace(each.settings, limit=options.limit))
        arguments.require_trust(each.settings, options.trust_remote_code)
    overlaps = _overlaps(stored)
    names = _names(stored)
    model: LoadedModel | None = None
    loaded = None
    for name, each in zip(names, stored, strict=True):
        task = load_run_task(each.settings)
        if model is None or loaded != each.settings.model_args:
            model, loaded = load_model(each.settings), each.settings.model_args
        questions = selection_questions(model.lm, each.settings, task)
        own = tuple(pair for pair in overlaps if name in pair.runs)
        explanation = explain_run(model, questions, each, own, options.top_n, options.limit)
        if not own_rank():  # every process explains for itself, and one speaks
            if len(stored) > 1:
                show(f"# {name}\n")
            show(summary(explanation))
            write_whole(each.run.explanation, explanation.to_json())
            write_whole(each.run.explanation_text, render(explanation))
            tokens = with_explanation(read_tokens(each.run.tokens), explanation)
            write_whole(each.run.tokens, tokens_json(tokens))
            report_task(each.run)  # its page and tables have the tokens from now on
    if overlaps and not own_rank():
        show(f"## Overlap of sets\n\n{overlap_table(overlaps)}\n")
    if not own_rank():
        show("\n".join(f"written to {each.run.explanation_text}" for each in stored))
    return 0


def _names(stored: Sequence[StoredRun]) -> list[str]:
    """What to call each run: its directory's name, or its path where names repeat."""
    names = [each.run.path.name for each in stored]
    return names if len(set(names)) == len(names) else [str(each.run.path) for each in stored]


def _overlaps(stored: Sequence[StoredRun]) -> list[SetOverlap]:
    """Of every two runs, how far their sets overlap."""
    found = []
    named = zip(_names(stored), stored, strict=True)
    for (name, one), (other, two) in itertools.combinations(named, 2):
        same = one.neurons.shape == two.neurons.shape and (
            one.neurons.provenance.model_hash == two.neurons.provenance.model_hash
        )
        for sets in COMPARED:
            first, second = getattr(one.neurons, sets[0]), getattr(two.neurons, sets[1])
            known = overlap(first, second, one.neurons.shape) if same else None
            found.append(SetOverlap((name, other), sets, known))
    return found
