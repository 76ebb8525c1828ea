"""Tables of the top neurons, of their stability, and of a run's provenance. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from neuronllm_eval.evaluation.stats.significance import stability_of
from neuronllm_eval.explain.token_effects import NeuronTokens, TokenEffect, top_neurons
from neuronllm_eval.neurons.neuron_set import Provenance
from neuronllm_eval.reporting.condition_tables import Table
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.reporting.wording import unit

EXPLAIN = "Run `neuronllm-eval explain` on this directory to see their tokens here."
_DIRECTION = (
    "Promotes, demotes: while its activation is positive; while it is negative, the reverse."
)
_SIGNS = "Run `neuronllm-eval explain` to see how often it is positive."


def neurons_table(report: TaskReport) -> Table:
    """The top neurons, with their tokens if these are available."""
    headers = ["neuron", "set", "score", "good votes", "bad votes"]
    note = (
        "Neurons are named layer:index. Votes: how many of the "
        f"{report.scores.provenance.n_questions} questions count it as good, and as bad."
    )
    explained = any(tokens.positive is not None for tokens in report.tokens.values())
    if not report.tokens:
        note += f" {EXPLAIN}"
    else:
        headers += ["promotes", "demotes"]
        note += f" {_DIRECTION}" + ("" if explained else f" {_SIGNS}")
    if explained:
        headers += ["positive %", "about"]
        note += " Positive %: share of the prompts on which it is above 0; more in explain.md."
    rows = []
    for name, neuron in top_neurons(report.neurons):
        votes = (
            report.scores.good_count[neuron.location],
            report.scores.bad_count[neuron.location],
        )
        tokens = report.tokens.get((name, *neuron.location))
        row = [f"{neuron.layer}:{neuron.index}", name, f"{neuron.score:+.3g}", *map(str, votes)]
        row += _token_cells(tokens) if report.tokens else []
        row += _explained_cells(tokens) if explained else []
        rows.append(tuple(row))
    return Table("Top neurons", tuple(headers), tuple(rows), note)


def _token_cells(tokens: NeuronTokens | None) -> list[str]:
    return ["", ""] if tokens is None else [_quoted(tokens.promotes), _quoted(tokens.demotes)]


def _explained_cells(tokens: NeuronTokens | None) -> list[str]:
    if tokens is None or tokens.positive is None:
        return ["", "not explained"]
    return [f"{100 * tokens.positive:.0f}", tokens.reading]


def _quoted(tokens: Sequence[TokenEffect]) -> str:
    # In quotes, as white space is part of a token.
    return ", ".join(json.dumps(token.text, ensure_ascii=False) for token in tokens)


def stability_table(report: TaskReport) -> Table:
    """Agreement of two halves of the questions on the neurons."""
    stability = stability_of(report.scores.half_sums, report.neurons.top_k)
    values = (stability.rank_correlation, stability.top_k_overlap, stability.bottom_k_overlap)
    cells = ("" if math.isnan(value) else f"{value:.2f}" for value in values)
    return Table(
        "Split-half stability",
        ("neurons compared", "rank correlation", "good in both halves", "bad in both halves"),
        ((str(stability.k), *cells),),
        "Scores of even and of odd questions. Rank correlation: Spearman's, over neurons scored by "
        "either half; in both halves: share of the top good, and bad, neurons.",
    )


def gap_table(provenance: Provenance) -> Table | None:
    """The completeness gap of the attributions; None if it was not measured."""
    largest, mean = provenance.completeness_gap_max, provenance.completeness_gap_mean
    share = provenance.completeness_gap_share
    if largest is None or mean is None or share is None:
        return None
    name = unit(provenance.method)
    return Table(
        "Completeness gap",
        ("largest", "mean", "share of the change"),
        ((f"{largest:.2g}{name}", f"{mean:.2g}{name}", f"{share:.2%}"),),
        "Per prompt and layer, the difference between the sum of the attributions and the change "
        "of the target along the path.",
    )


def provenance_table(report: TaskReport) -> Table:
    """Model, task, settings and versions of the run."""
    origin = report.scores.provenance
    n_good, n_bad = len(report.neurons.good), len(report.neurons.bad)
    rows = {
        "model": origin.model,
        "revision": origin.model_revision,
        "weights": f"{origin.model_hash}, {origin.dtype}",
        "tokenizer": origin.tokenizer_hash,
        "task": f"{origin.task} ({origin.task_hash})",
        "selection": f"{origin.split} ({origin.n_questions} questions, {origin.n_prompts} prompts)",
        "validation": _validation(report),
        "demonstrations": str(origin.num_fewshot),
        "prompts": settings_text(origin.asked),
        "method": ", ".join(filter(None, (origin.method, settings_text(origin.method_args)))),
        "path integral": f"{origin.quadrature}, {origin.n_steps} nodes, {origin.attribution_dtype}",
        "positions": f"selected at {origin.positions}, applied at {report.applied_at}",
        "neurons": f"{n_good} good and {n_bad} bad of {report.scores.score.size}, "
        f"top_z {origin.top_z}, ambiguous {report.neurons.ambiguous}",
        "engine": f"{origin.engine} on {origin.device}, {origin.batch_size} prompts per batch",
        "seed": str(origin.seed),
        "packages": f"neuronllm-eval {origin.tool_version}, lm_eval {origin.lm_eval_version}, "
        f"transformers {origin.transformers_version}, torch {origin.torch_version}",
    }
    filled = tuple((name, value.strip()) for name, value in rows.items() if value.strip())
    return Table("Provenance", ("what", "value"), filled)


def _validation(report: TaskReport) -> str:
    if not report.summaries:
        return "not validated yet"
    accuracy = report.summaries[0].accuracy
    return f"{report.split} ({accuracy.n_questions} questions, {accuracy.n_docs} docs)"


def settings_text(text: str) -> str:
    """JSON of an object as `name=value, ...`; any other text unchanged."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # written by other programs
        return text
    if not isinstance(values, dict):
        return text
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    )
