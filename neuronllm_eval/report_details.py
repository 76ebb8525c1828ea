"""The tables of a run that `report.md` ends with and `report.html` shows beside its figures. Pure.

What was answered before and under a condition, the top neurons, and how to make the run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuronllm_eval.answers import Flip, GroupAccuracy, flips, group_accuracies, letter_counts
from neuronllm_eval.aqua import LETTERS
from neuronllm_eval.conditions import UNMASKED
from neuronllm_eval.doc_table import DocTable
from neuronllm_eval.explained_tokens import NeuronTokens
from neuronllm_eval.judged_docs import JudgedDoc
from neuronllm_eval.markdown_text import escaped
from neuronllm_eval.neurons import Neuron, Provenance
from neuronllm_eval.report import TaskReport, markdown_table, unit
from neuronllm_eval.report_tables import Table
from neuronllm_eval.stability import stability_of
from neuronllm_eval.summary import ConditionSummary

SHOWN_FLIPS = 5
SHOWN_NEURONS = 10
_MOST_GROUPS = 100
_MORE = "more"
EXPLAIN = "Their tokens stand here once `neuronllm-eval explain` was run on this directory."


@dataclass(frozen=True)
class RunDetails:
    """What is known of a run besides a `TaskReport`.

    Attributes:
        table: answers of every doc under every condition; None before validation.
        docs: [docs] what they say; empty where that was not kept.
        tokens: by kind, layer and index of a neuron; empty where the run was not explained.
        commands: that make the run again.
    """

    table: DocTable | None = None
    docs: tuple[JudgedDoc, ...] = ()
    tokens: Mapping[tuple[str, int, int], NeuronTokens] = field(default_factory=dict)
    commands: tuple[str, ...] = ()


def tested(summaries: Sequence[ConditionSummary]) -> list[ConditionSummary]:
    """The conditions that have deltas of their own: no points, unless there is nothing else."""
    known = [each for each in summaries if each.mcnemar is not None]
    return [each for each in known if not each.is_point] or known


def main_condition(summaries: Sequence[ConditionSummary]) -> str | None:
    """The condition whose answers are shown one by one; None where there is none."""
    names = [each.name for each in tested(summaries)]
    return "suppress_good" if "suppress_good" in names else next(iter(names), None)


# Answers ----------------------------------------------------------------------------------------


def flips_table(details: RunDetails, condition: str, gained: bool) -> Table | None:
    """Some of the questions that a condition won, or lost; None where there is none."""
    assert details.table is not None
    found = flips(details.table, condition, gained, SHOWN_FLIPS)
    headers = ("question", "right option", "unmasked said", f"{condition} said")
    rows = tuple(_flip_row(details, flip) for flip in found)
    title = f"Questions {'won' if gained else 'lost'} by {condition}"
    note = (
        "Those whose confidence moved furthest, one doc of each question; the words are the first "
        "of question and option."
    )
    return Table(title, headers, rows, note) if rows else None


def _flip_row(details: RunDetails, flip: Flip) -> tuple[str, ...]:
    assert details.table is not None
    if not details.docs:
        question = details.table.question_ids[int(details.table.question_index[flip.row])]
        return (question, *(letter(option) for option in (flip.gold, flip.before, flip.after)))
    doc = details.docs[flip.row]

    def said(option: int) -> str:
        text = doc.options[option] if option < len(doc.options) else ""
        return f"{letter(option)}. {text}" if text not in ("", letter(option)) else letter(option)

    return (doc.question, *(said(option) for option in (flip.gold, flip.before, flip.after)))


def letter(option: int) -> str:
    """What an option is called by its place."""
    return LETTERS[option] if option < len(LETTERS) else str(option + 1)


@dataclass(frozen=True)
class LetterShares:
    """How often each letter is right, and is said.

    Attributes:
        letters: of the options; those without a letter of their own are `more`.
        right: [letters] percent of the docs.
        said: condition -> [letters] percent of the docs.
    """

    letters: tuple[str, ...]
    right: tuple[float, ...]
    said: Mapping[str, tuple[float, ...]]


def letter_shares(table: DocTable, summaries: Sequence[ConditionSummary]) -> LetterShares:
    """By letter, of the unmasked run and of the conditions that are no points."""
    n_letters = int(table.n_options.max())
    shown = tuple(map(letter, range(min(n_letters, len(LETTERS)))))

    def shares(answers: Any) -> tuple[float, ...]:
        counts = letter_counts(answers, n_letters)
        counts = [*counts[: len(shown)], *([sum(counts[len(shown) :])] if more else [])]
        return tuple(100 * count / len(answers) for count in counts)

    more = n_letters > len(shown)
    names = [UNMASKED, *(each.name for each in tested(summaries))]
    said = {name: shares(table.predicted[name]) for name in names}
    return LetterShares((*shown, _MORE) if more else shown, shares(table.gold), said)


def letters_table(shares: LetterShares) -> Table:
    """Of how many docs each letter is the answer, before and under each condition."""
    rows = [("right options", shares.right), *shares.said.items()]
    return Table(
        "Letters said",
        ("answers", *(f"{name} %" for name in shares.letters)),
        tuple((name, *(f"{share:.1f}" for share in found)) for name, found in rows),
        "Share of the docs by the letter of the option that is right, and that was said.",
    )


def group_rows(details: RunDetails, conditions: Sequence[str]) -> list[GroupAccuracy]:
    """Accuracy by family or subject; none where the docs name fewer than two, or too many."""
    names = [each.group for each in details.docs]
    if details.table is None or not 2 <= len(set(filter(None, names))) <= _MOST_GROUPS:
        return []
    return group_accuracies(details.table, names, conditions)


def groups_table(details: RunDetails, summaries: Sequence[ConditionSummary]) -> Table | None:
    """Accuracy by family or subject, before and under each condition; None if there is none."""
    conditions = [UNMASKED, *(each.name for each in tested(summaries))]
    rows = tuple(
        (each.name, str(each.n_questions), *(f"{value:.1f}" for value in each.accuracy))
        for each in group_rows(details, conditions)
    )
    if not rows:
        return None
    headers = ("group", "questions", *(f"{name} %" for name in conditions))
    return Table("Accuracy by group", headers, rows, "Groups are as the data name them.")


# Neurons ----------------------------------------------------------------------------------------


def neurons_table(report: TaskReport, details: RunDetails) -> Table:
    """The top neurons, with their tokens where these are known."""
    sets = {"good": report.neurons.good, "bad": report.neurons.bad}
    chosen = [(kind, each) for kind, found in sets.items() for each in found[:SHOWN_NEURONS]]
    rows = [_neuron_row(report, kind, neuron) for kind, neuron in chosen]
    headers = ("neuron", "kind", "score", "called good", "called bad")
    note = (
        "Neurons are named layer:index. Called good, bad: by how many of the "
        f"{report.scores.provenance.n_questions} questions."
    )
    if not details.tokens:
        return Table("Top neurons", headers, tuple(rows), f"{note} {EXPLAIN}")
    found = [details.tokens.get((kind, *neuron.place)) for kind, neuron in chosen]
    rows = [
        (*row, _quoted(tokens), "" if tokens is None else tokens.reading)
        for row, tokens in zip(rows, found, strict=True)
    ]
    note += " Mostly promotes: by the sign of its activation on most prompts; more in explain.md."
    return Table("Top neurons", (*headers, "mostly promotes", "about"), tuple(rows), note)


def _neuron_row(report: TaskReport, kind: str, neuron: Neuron) -> tuple[str, ...]:
    votes = (report.scores.good_count[neuron.place], report.scores.bad_count[neuron.place])
    return (f"{neuron.layer}:{neuron.index}", kind, f"{neuron.score:+.3g}", *map(str, votes))


def _quoted(tokens: NeuronTokens | None) -> str:
    # In quotes, as white space is part of a token.
    texts = () if tokens is None else tokens.promotes
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


# Provenance -------------------------------------------------------------------------------------


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
        "asked": "" if known.asked == "{}" else known.asked,
        "method": f"{known.method} {'' if known.method_args == '{}' else known.method_args}",
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


# Markdown ---------------------------------------------------------------------------------------


def detail_tables(report: TaskReport, details: RunDetails) -> list[Table]:
    """All of them, in the order of `report.md`."""
    found: list[Table | None] = []
    condition = main_condition(report.summaries)
    if details.table is not None and condition is not None:
        found += [flips_table(details, condition, gained) for gained in (True, False)]
        found.append(letters_table(letter_shares(details.table, report.summaries)))
        found.append(groups_table(details, report.summaries))
    found += [neurons_table(report, details), provenance_table(report)]
    return [table for table in found if table is not None]


def appendix(report: TaskReport, details: RunDetails) -> str:
    """What `report.md` has besides what the console shows."""
    parts = []
    for table in detail_tables(report, details):
        rows = [[escaped(cell) for cell in row] for row in table.rows]
        headers = [escaped(name) for name in table.headers]
        parts += [f"### {escaped(table.title)}", markdown_table(headers, rows)]
        parts += [table.note] if table.note else []
    if details.commands:
        fence = "```"
        while any(fence in command for command in details.commands):
            fence += "`"
        lines = "\n".join(details.commands)
        parts += ["### The same again", f"{fence}sh\n{lines}\n{fence}"]
    return "\n\n".join(parts) + "\n"
