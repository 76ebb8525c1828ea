"""`neuronllm-eval explain`: what the top neurons of finished runs do, and how far they share them.

All that is stored is read and compared before the first model is loaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from neuronllm_eval.cli.commands import ExplainSettings
from neuronllm_eval.explain.explanation import NeuronExplanation, SetOverlap
from neuronllm_eval.explain.explanation_markdown import overlap_table, render, summary
from neuronllm_eval.explain.token_effects import read_tokens, tokens_json
from neuronllm_eval.neurons.neuron_set import COMPARED, overlap
from neuronllm_eval.reporting.write_reports import report_task
from neuronllm_eval.runs.directory import runs_below
from neuronllm_eval.runtime.process import own_rank
from neuronllm_eval.stages.explain import StoredRun, explain_run
from neuronllm_eval.stages.load import (
    LoadedModel,
    load_model,
    load_run_task,
    require_trust,
    selection_questions,
)


def explain(asked: ExplainSettings, show: Callable[[str], object]) -> int:
    """Explain every run at and below some directories."""
    given = {name: value for name, value in asked.overrides().items() if name != "limit"}
    stored = [StoredRun.load(run, given) for run in runs_below(asked.run_dir)]
    for each in stored:
        require_trust(each.settings, asked.trust_remote_code)
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
        explanation = explain_run(model, questions, each, own, asked.top_n, asked.limit)
        if not own_rank():  # every process explains for itself, and one speaks
            if len(stored) > 1:
                show(f"# {name}\n")
            show(summary(explanation))
            each.run.write(each.run.explanation, explanation.to_json())
            each.run.write(each.run.explanation_text, render(explanation))
            explained = {
                one.key: one for one in map(NeuronExplanation.listed_tokens, explanation.neurons)
            }
            tokens = {**read_tokens(each.run.tokens), **explained}
            listed = {key: one.listed() for key, one in tokens.items()}
            each.run.write(each.run.tokens, tokens_json(tokens.values()), listed)
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
