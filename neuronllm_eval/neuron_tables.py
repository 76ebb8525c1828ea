"""The top neurons, how firm their choice is, and what a run was made of, as tables. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from neuronllm_eval.asked_words import asked_words, method_words
from neuronllm_eval.explained_tokens import NeuronTokens
from neuronllm_eval.neuron_tokens import listed
from neuronllm_eval.neurons import Neuron, Provenance
from neuronllm_eval.report import TaskReport, unit
from neuronllm_eval.report_tables import Table
from neuronllm_eval.run_details import RunDetails
from neuronllm_eval.stability import stability_of

EXPLAIN = "Their tokens stand here once `neuronllm-eval explain` was run on this directory."
_DIRECTION = (
    "Promotes, demotes: where its activation is positive; where it is negative, the reverse."
)
_SIGNS = "How often it is positive, `neuronllm-eval explain` says."


def neurons_table(report: TaskReport, details: RunDetails) -> Table:
    """The top neurons, with their tokens where these are known."""
    chosen = listed(report.neurons)
    rows = [_neuron_row(report, kind, neuron) for kind, neuron in chosen]
    headers: tuple[str, ...] = ("neuron", "kind", "score", "called good", "called bad")
    note = (
        "Neurons are named layer:index. Called good, bad: by how many of the "
        f"{report.scores.provenance.n_questions} questions."
    )
    if not details.tokens:
        return Table("Top neurons", headers, tuple(rows), f"{note} {EXPLAIN}")
    found = [details.tokens.get((kind, *neuron.place)) for kind, neuron in chosen]
    rows = [
        (*row, *map(_quoted, (tokens.promotes, tokens.demotes) if tokens else ((), ())))
        for row, tokens in zip(rows, found, strict=True)
    ]
    note += f" {_DIRECTION}"
    headers += ("promotes", "demotes")
    if not any(tokens.explained for tokens in details.tokens.values()):
        return Table("Top neurons", headers, tuple(rows), f"{note} {_SIGNS}")
    rows = [(*row, *_sign_and_reading(tokens)) for row, tokens in zip(rows, found, strict=True)]
    note += " Positive %: share of the prompts on which it is above 0; more in explain.md."
    return Table("Top neurons", (*headers, "positive %", "about"), tuple(rows), note)


def _neuron_row(report: TaskReport, kind: str, neuron: Neuron) -> tuple[str, ...]:
    votes = (report.scores.good_count[neuron.place], report.scores.bad_count[neuron.place])
    return (f"{neuron.layer}:{neuron.index}", kind, f"{neuron.score:+.3g}", *map(str, votes))


def _sign_and_reading(tokens: NeuronTokens | None) -> tuple[str, str]:
    if tokens is None or tokens.positive is None:
        return "", "not explained"
    return f"{100 * tokens.positive:.0f}", tokens.reading


def _quoted(texts: Sequence[str]) -> str:
    # In quotes, as white space is part of a token.
    return ", ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def stability_table(report: TaskReport) -> Table:
    """How far two halves of the questions agree on the neurons."""
    found = stability_of(report.scores.half_sums, report.neurons.top_k)
    values = (found.rank_correlation, found.top_k_overlap, found.bottom_k_overlap)
    row = ("" if math.isnan(value) else f"{value:.2f}" for value in values)
    return Table(
        "Split-half stability",
        ("neurons compared", "rank correlation", "good in both halves", "bad in both halves"),
        ((str(found.k), *row),),
        "Scores of even and of odd questions. Rank correlation: Spearman's, over neurons that a "
        "half has scored; in both halves: share of the top good, and bad, neurons.",
    )


def gap_table(provenance: Provenance) -> Table | None:
    """What attributions miss of the change that they add up to; None if it was not measured."""
    most, mean = provenance.completeness_gap_max, provenance.completeness_gap_mean
    share = provenance.completeness_gap_share
    if most is None or mean is None or share is None:
        return None
    named = unit(provenance.method)
    return Table(
        "Completeness gap",
        ("largest", "mean", "share of the change"),
        ((f"{most:.2g}{named}", f"{mean:.2g}{named}", f"{share:.2%}"),),
        "Per prompt and layer, how far the sum of the attributions is from the change of the "
        "target along the path.",
    )


def provenance_table(report: TaskReport) -> Table:
    """What the run was made of."""
    known = report.scores.provenance
    judged_on = f"{report.split} ({_size(report)})" if report.summaries else "not judged yet"
    rows = {
        "model": known.model,
        "revision": known.model_revision,
        "weights": f"{known.model_hash}, {known.dtype}",
        "tokenizer": known.tokenizer_hash,
        "task": f"{known.task} ({known.task_hash})",
        "chosen on": f"{known.split} ({known.n_questions} questions, {known.n_prompts} prompts)",
        "judged on": judged_on,
        "demonstrations": str(known.num_fewshot),
        "asked": asked_words(known.asked),
        "method": method_words(known.method, known.method_args),
        "path integral": f"{known.quadrature}, {known.n_steps} nodes, {known.attribution_dtype}",
        "positions": f"chosen at {known.positions}, applied at {report.applied_at}",
        "neurons": f"{len(report.neurons.good)} good and {len(report.neurons.bad)} bad of "
        f"{report.scores.score.size}, top_z {known.top_z}, ambiguous {report.neurons.ambiguous}",
        "engine": f"{known.engine} on {known.device}, {known.batch_size} prompts at a time",
        "seed": str(known.seed),
        "packages": f"neuronllm-eval {known.tool_version}, lm_eval {known.lm_eval_version}, "
        f"transformers {known.transformers_version}, torch {known.torch_version}",
    }
    filled = tuple((name, value.strip()) for name, value in rows.items() if value.strip())
    return Table("Provenance", ("what", "value"), filled)


def _size(report: TaskReport) -> str:
    first = report.summaries[0].accuracy
    return f"{first.n_questions} questions, {first.n_docs} docs"
