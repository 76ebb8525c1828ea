"""The top neurons, how firm their choice is, and what a run was made of, as tables. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from neuronllm_eval.evaluation.stats.split_half import stability_of
from neuronllm_eval.explain.token_effects import NeuronTokens, TokenEffect, top_neurons
from neuronllm_eval.neurons.neuron_set import Neuron, Provenance
from neuronllm_eval.reporting.condition_tables import RunDetails, Table
from neuronllm_eval.reporting.report_markdown import TaskReport, unit

# How an AQUA task was asked, by the names of `AquaSettings`, in the order of the sentence.
_PHRASES: dict[str, Callable[[Any], str]] = {
    "n_proxies": lambda value: f"{value} proxies of each question",
    "orders": lambda value: f"orders of the options: {value}",
    "letter_style": lambda value: f"letters written {value}",
    "n_options": lambda value: (
        "options as the data have them" if value is None else f"{value} options"
    ),
    "distractors": lambda value: (
        "no distractors" if value == "none" else f"distractors: {value}"
    ),
    "on_bad_doc": lambda value: f"docs that cannot be asked: {value}",
    "n_demonstrations": lambda value: f"{value} questions set aside for demonstrations",
    "max_selection": lambda value: f"at most {value} docs read to choose on",
    "seed": lambda value: f"seed {value}",
}  # fmt: skip


def asked_words(text: str) -> str:
    """How a task was asked, in words; names that are not known as they are.

    Args:
        text: JSON of an object, as `Provenance.asked`; anything else comes back as it is.
    """
    values = _object(text)
    if values is None:
        return text
    known = [phrase(values[name]) for name, phrase in _PHRASES.items() if name in values]
    return "; ".join([*known, *_pairs({k: v for k, v in values.items() if k not in _PHRASES})])


def method_words(method: str, text: str) -> str:
    """A method with its settings.

    Args:
        method: its name.
        text: JSON of an object, as `Provenance.method_args`; anything else follows as it is.
    """
    values = _object(text)
    return ", ".join([method, *([text] if values is None else _pairs(values))])


def _pairs(values: dict[str, Any]) -> list[str]:
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in values.items()
    ]


def _object(text: str) -> dict[str, Any] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):  # what others wrote: it is shown as it is
        return None
    return values if isinstance(values, dict) else None


EXPLAIN = "Their tokens stand here once `neuronllm-eval explain` was run on this directory."
_DIRECTION = (
    "Promotes, demotes: where its activation is positive; where it is negative, the reverse."
)
_SIGNS = "How often it is positive, `neuronllm-eval explain` says."


def neurons_table(report: TaskReport, details: RunDetails) -> Table:
    """The top neurons, with their tokens where these are known."""
    chosen = top_neurons(report.neurons)
    rows = [_neuron_row(report, kind, neuron) for kind, neuron in chosen]
    headers: tuple[str, ...] = ("neuron", "kind", "score", "called good", "called bad")
    note = (
        "Neurons are named layer:index. Called good, bad: by how many of the "
        f"{report.scores.provenance.n_questions} questions."
    )
    if not details.tokens:
        return Table("Top neurons", headers, tuple(rows), f"{note} {EXPLAIN}")
    found = [details.tokens.get((kind, *neuron.location)) for kind, neuron in chosen]
    rows = [
        (*row, *map(_quoted, (tokens.promotes, tokens.demotes) if tokens else ((), ())))
        for row, tokens in zip(rows, found, strict=True)
    ]
    note += f" {_DIRECTION}"
    headers += ("promotes", "demotes")
    if all(tokens.positive is None for tokens in details.tokens.values()):
        return Table("Top neurons", headers, tuple(rows), f"{note} {_SIGNS}")
    rows = [(*row, *_sign_and_reading(tokens)) for row, tokens in zip(rows, found, strict=True)]
    note += " Positive %: share of the prompts on which it is above 0; more in explain.md."
    return Table("Top neurons", (*headers, "positive %", "about"), tuple(rows), note)


def _neuron_row(report: TaskReport, kind: str, neuron: Neuron) -> tuple[str, ...]:
    votes = (report.scores.good_count[neuron.location], report.scores.bad_count[neuron.location])
    return (f"{neuron.layer}:{neuron.index}", kind, f"{neuron.score:+.3g}", *map(str, votes))


def _sign_and_reading(tokens: NeuronTokens | None) -> tuple[str, str]:
    if tokens is None or tokens.positive is None:
        return "", "not explained"
    return f"{100 * tokens.positive:.0f}", tokens.reading


def _quoted(effects: Sequence[TokenEffect]) -> str:
    # In quotes, as white space is part of a token.
    return ", ".join(json.dumps(each.text, ensure_ascii=False) for each in effects)


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
