"""Tables below the effects: answers by doc and group; neurons; provenance. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.method_choice import MethodChoice
from neuronllm_eval.evaluation.stats.significance import stability_of
from neuronllm_eval.explain.token_effects import NeuronTokens, TokenEffect, top_neurons
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.neurons.label_parts import LabelParts
from neuronllm_eval.neurons.neuron_set import Provenance
from neuronllm_eval.prompts import PER_BYTE, PER_CHARACTER
from neuronllm_eval.reporting.answer_tables import letter
from neuronllm_eval.reporting.condition_tables import Table
from neuronllm_eval.reporting.task_report import TaskReport
from neuronllm_eval.reporting.wording import (
    LARGE_GAP,
    gap_figures,
    large_gaps,
    nodes_text,
    tested,
    unit,
)

_SHOWN_FLIPS = 5
_MOST_GROUPS = 100
EXPLAIN = "Run `neuronllm-eval explain` on this directory to see their tokens here."
_DIRECTION = (
    "Promotes, demotes: while its activation is positive; while it is negative, the reverse."
)
_SIGNS = "Run `neuronllm-eval explain` to see how often it is positive."
_USUAL_DIRECTION = (
    "Mostly promotes, mostly demotes: by the sign of its activation on most prompts; of neurons "
    "that are not explained, while it is positive. Positive %: share of the prompts on which it is "
    "above 0; more in explain.md."
)


_LABEL_PARTS = (
    "Task part: mean over gold options of the mean value of their prompts. Label index: 1 where "
    "the neuron does the same for every gold option, -1 where these cancel out, below 0 a label "
    "neuron."
)


# Flips --------------------------------------------------------------------------------------------


def flips_table(report: TaskReport, condition: str, gained: bool) -> Table | None:
    """Some of the questions that a condition gained or lost; None where there is none."""
    assert report.answers is not None
    rows = tuple(
        _flip_row(report, row, condition)
        for row in flipped_docs(report.answers, condition, gained, _SHOWN_FLIPS)
    )
    title = f"Questions {'gained' if gained else 'lost'} under {condition}"
    headers = ("question", "gold option", "unmasked prediction", f"{condition} prediction")
    note = (
        "The largest changes of confidence, one doc per question; questions and options are cut "
        "to their first words."
    )
    return Table(title, headers, rows, note, first_above=True) if rows else None


def flipped_docs(answers: DocTable, condition: str, gained: bool, limit: int) -> list[int]:
    """Rows of the docs that a condition gained, or lost, by the change of their confidence.

    Args:
        limit: at most so many rows, one per question.
    """
    change = answers.correct[condition] - answers.correct[UNMASKED]
    moved = answers.confidence[condition] - answers.confidence[UNMASKED]
    rows = np.flatnonzero(change == (1 if gained else -1))
    rows = rows[np.argsort(moved[rows] * (-1 if gained else 1), kind="stable")]
    _, first = np.unique(answers.question_index[rows], return_index=True)
    return rows[np.sort(first)[:limit]].tolist()


def _flip_row(report: TaskReport, row: int, condition: str) -> tuple[str, ...]:
    answers = report.answers
    assert answers is not None
    options = [
        answers.gold[row],
        answers.predicted[UNMASKED][row],
        answers.predicted[condition][row],
    ]
    if not report.doc_texts:
        return (answers.question_ids[row], *map(letter, options))
    doc = report.doc_texts[row]
    texts = dict(enumerate(doc.options))
    shown = [
        letter(option)
        if texts.get(option, "") in ("", letter(option))
        else f"{letter(option)}. {texts[option]}"
        for option in options
    ]
    return (doc.question, *shown)


# Groups -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on a group of questions, such as a subject.

    Attributes:
        chance: the accuracy of guessing, percent.
        accuracy: [conditions], percent.
    """

    name: str
    n_questions: int
    chance: float
    accuracy: tuple[float, ...]


def group_accuracies(report: TaskReport, conditions: Sequence[str]) -> list[GroupAccuracy]:
    """Accuracy by group, by name; none where the docs name fewer than two groups, or too many."""
    answers, groups = report.answers, [doc.group for doc in report.doc_texts]
    names = sorted(set(filter(None, groups)))
    if answers is None or not 2 <= len(names) <= _MOST_GROUPS:
        return []
    rows_of = {name: np.flatnonzero(np.array(groups) == name) for name in names}
    return [
        GroupAccuracy(
            name,
            np.unique(answers.question_index[rows]).size,
            100 * float(np.mean(1 / answers.n_options[rows])),
            tuple(100 * float(answers.correct[each][rows].mean()) for each in conditions),
        )
        for name, rows in rows_of.items()
    ]


def groups_table(report: TaskReport) -> Table | None:
    """Accuracy by group, unmasked and under each condition; None where there are no groups."""
    conditions = [UNMASKED, *(summary.name for summary in tested(report.summaries))]
    rows = tuple(
        (
            group.name,
            str(group.n_questions),
            *(f"{value:.1f}" for value in (group.chance, *group.accuracy)),
        )
        for group in group_accuracies(report, conditions)
    )
    headers = ("group", "questions", "chance %", *(f"{name} %" for name in conditions))
    return (
        Table("Accuracy by group", headers, rows, "Groups are named as in the data.")
        if rows
        else None
    )


# Neurons and provenance ---------------------------------------------------------------------------


def neurons_table(report: TaskReport) -> Table:
    """The top neurons, with their tokens if these are available."""
    headers = ["neuron", "set", "score", "good votes", "bad votes"]
    note = (
        "Neurons are named layer:index. Votes: how many of the "
        f"{report.scores.provenance.n_questions} questions count it as good, and as bad."
    )
    listed = top_neurons(report.neurons)
    parts = report.label_parts([neuron for _, neuron in listed])
    if parts is not None:
        headers += ["task part", "label index"]
        note += f" {_LABEL_PARTS}"
    explained = any(tokens.positive is not None for tokens in report.tokens.values())
    if not report.tokens:
        note += f" {EXPLAIN}"
    elif explained:
        headers += ["mostly promotes", "mostly demotes", "positive %", "about"]
        note += f" {_USUAL_DIRECTION}"
    else:
        headers += ["promotes", "demotes"]
        note += f" {_DIRECTION} {_SIGNS}"
    rows = []
    for number, (name, neuron) in enumerate(listed):
        votes = (
            report.scores.good_count[neuron.location],
            report.scores.bad_count[neuron.location],
        )
        tokens = report.tokens.get((name, *neuron.location))
        row = [f"{neuron.layer}:{neuron.index}", name, f"{neuron.score:+.3g}", *map(str, votes)]
        row += _label_cells(parts, number) if parts is not None else []
        row += _token_cells(tokens) if report.tokens else []
        row += _explained_cells(tokens) if explained else []
        rows.append(tuple(row))
    return Table("Top neurons", tuple(headers), tuple(rows), note)


def _label_cells(parts: LabelParts, number: int) -> list[str]:
    index = parts.index[number]
    return [f"{parts.task[number]:+.3g}", "" if math.isnan(index) else f"{index:+.2f}"]


def _token_cells(tokens: NeuronTokens | None) -> list[str]:
    if tokens is None:
        return ["", ""]
    usual = tokens.on_most_prompts
    return [_quoted(usual.promotes), _quoted(usual.demotes)]


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


def choice_table(choice: MethodChoice | None) -> Table | None:
    """What `--method auto` tried; None for other methods."""
    if choice is None:
        return None
    rows = tuple(
        (
            f"{candidate.penalty:g}",
            str(candidate.top_k),
            f"{candidate.difference:+.1f} ± {candidate.error:.1f}",
            f"{candidate.gain:+.1f}",
            f"{candidate.option_mass:.0%}",
            f"{candidate.top_answer:.0f}%",
            "taken" if number == choice.chosen else "" if candidate.is_sound else "left out",
        )
        for number, candidate in enumerate(choice.candidates)
    )
    return Table(
        "Choice of the settings",
        (
            *("penalty", "neurons", "enhance minus degrade", "enhance"),
            *("option mass", "same answer", ""),
        ),
        rows,
        f"By {choice.n_docs} docs of the selection split, each by the neurons that the other half "
        "of the questions select. Changes of calibrated confidence, in percentage points, with "
        "standard error; under enhance, the options' total probability as a share of the unmasked "
        "model's, and the share of the most frequent answer. Left out: enhance takes more "
        "than a fifth of that probability, or gives 90% or more of the docs one answer.",
    )


def gap_table(provenance: Provenance) -> Table | None:
    """The completeness gap of the attributions; None if it was not measured."""
    figures = gap_figures(provenance)
    if figures is None:
        return None
    largest, mean, share = figures
    name = unit(provenance.method)
    return Table(
        "Completeness gap",
        ("largest", "mean", "share of the change"),
        ((f"{largest}{name}", f"{mean}{name}", share),),
        "Per prompt and layer, the difference between the sum of the attributions and the change "
        f"of the target along the path. {_worst_layers(provenance)}".strip(),
    )


def _worst_layers(provenance: Provenance) -> str:
    """The layers of large gaps, or the layer of the largest; empty in runs that do not say."""
    shares = provenance.completeness_gap_layers
    if not shares:
        return ""
    worst = max(range(len(shares)), key=shares.__getitem__)
    largest = f"{shares[worst]:.1%} of the change, in layer {worst}"
    text = large_gaps(provenance) or f"No layer's gap is over {LARGE_GAP:.0%}"
    return f"{text[0].upper()}{text[1:]}; the largest is {largest}."


# Where options are not compared by their log-likelihoods as they are.
_COMPARED_BY = {
    PER_CHARACTER: "compared by log-likelihood per character, as in acc_norm",
    PER_BYTE: "compared by log-likelihood per byte, as in acc_bytes",
}


def provenance_table(report: TaskReport) -> Table:
    """Model, task, settings and versions of the run."""
    origin = report.scores.provenance
    n_good, n_bad = len(report.neurons.good), len(report.neurons.bad)
    rows = {
        "model": origin.model_name,
        "revision": origin.model_revision,
        "weights": f"{origin.model_hash}, {origin.dtype}",
        "tokenizer": origin.tokenizer_hash,
        "task": f"{origin.task} ({origin.task_hash})",
        "selection": f"{origin.split} ({origin.n_questions} questions, {origin.n_prompts} prompts)",
        "validation": _validation(report),
        "demonstrations": str(origin.num_fewshot),
        "prompts": settings_text(origin.asked),
        "method": ", ".join(filter(None, (origin.method, settings_text(origin.method_args)))),
        "path integral": f"{nodes_text(origin)}, {origin.attribution_dtype}",
        "nodes by layer": origin.layer_nodes,
        "positions": f"selected at {origin.positions}, applied at {report.applied_at}",
        "options": _COMPARED_BY.get(origin.option_scores, ""),
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
