"""The sections of a report as values: text, figures and tables. Pure.

`report.html` and `report.md` write the same sections; figures are only in the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neuronllm_eval.evaluation.stats.significance import stability_of
from neuronllm_eval.formats.markdown import data_text, one_line
from neuronllm_eval.formats.svg import Drawing, clipped
from neuronllm_eval.interventions.conditions import ACTIVATION, UNMASKED, ConditionName
from neuronllm_eval.neurons.neuron_set import Neuron, layer_counts
from neuronllm_eval.prompts import SCORED
from neuronllm_eval.reporting import charts, wording
from neuronllm_eval.reporting.answer_tables import (
    fixed_names,
    gold_table,
    option_names,
    option_shares,
    shares_table,
)
from neuronllm_eval.reporting.condition_tables import (
    DOSE_NOTE,
    SURFACES,
    Table,
    conditions_table,
    cost_table,
    dose_tables,
    metrics_table,
    significance_table,
)
from neuronllm_eval.reporting.detail_tables import (
    choice_table,
    flips_table,
    gap_table,
    group_accuracies,
    groups_table,
    neurons_table,
    provenance_table,
    stability_table,
)
from neuronllm_eval.reporting.other_tasks import OTHERS_NOTE, others_table
from neuronllm_eval.reporting.robust_tables import robust_tables
from neuronllm_eval.reporting.task_report import TaskReport

_DELTAS_MARKS = (
    "Filled: p below 0.05 after Holm's correction; hollow: not. Random controls: from the lowest "
    "to the highest."
)
_FLIPS_MARKS = "Docs whose answer became incorrect, or correct, against the unmasked run."
_LAYERS_MARKS = "Selected neurons by layer: good up, bad down."
_HALVES_MARKS = (
    "Scores of the selected neurons from either half of the selection questions; on the dashed "
    "line the halves agree."
)
_DOSE_MARKS = (
    "Delta in points with its 95% interval; grey: the range of the point's own random controls; "
    f"square: the unmasked model. At most {charts.MOST_PANELS} panels are drawn; the tables have "
    "all points."
)


@dataclass(frozen=True)
class Figure:
    """Drawings with one caption.

    Attributes:
        drawings: one, or small multiples.
        caption: what they show and how to read the marks; may be empty.
        title: a line above them; may be empty.
    """

    drawings: tuple[Drawing, ...]
    caption: str = ""
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        anchor: its id.
        text: paragraphs.
        figures: side by side where there is room.
        tables: below them.
        commands: for a shell.
        links: text and relative address of other pages.
    """

    anchor: str
    title: str
    text: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    commands: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


def headline(report: TaskReport) -> str:
    """The effect of the main condition, or what was selected, in a plain sentence.

    Another precedes it if the unmasked model is not clearly above chance, and one follows if
    conditions leave nearly all docs with the same answer, or if most of the good, or of the bad,
    neurons are label neurons and the options are the same in all docs.
    """
    chance = collapse = label = ""
    if report.answers is not None:
        chance = wording.chance_sentence(report.answers.unmasked_against_chance)
        names = option_names(report.answers, report.doc_texts)
        shares = option_shares(report.answers, report.summaries, names)
        is_one_each = len(set(report.answers.question_ids)) == len(report.answers.doc_ids)
        unit = "question" if is_one_each else "prompt"
        collapse = wording.collapse_sentence(names, shares.gold, shares.predicted, unit)
        if fixed_names(report.answers, report.doc_texts):
            label = _label_sentence(report, only_if_most=True)
    return " ".join(filter(None, (chance, _effect(report), collapse, label)))


def _label_sentence(report: TaskReport, *, only_if_most: bool = False) -> str:
    """How many neurons are label neurons; empty where that is not defined.

    Args:
        only_if_most: empty, too, unless more than half of the good, or of the bad, neurons are.
    """
    sets = {"good": report.neurons.good, "bad": report.neurons.bad}
    parts = {name: report.label_parts(neurons) for name, neurons in sets.items()}
    counts = {name: int(each.is_label.sum()) for name, each in parts.items() if each is not None}
    sizes = {name: len(sets[name]) for name in counts}
    if only_if_most and not any(2 * counts[name] > sizes[name] for name in counts):
        return ""
    return wording.label_sentence(counts, sizes)


def _effect(report: TaskReport) -> str:
    """The main sentence of the headline.

    Positions are named unless they are the paper's, the scored ones.
    """
    neurons, selected_at = report.neurons, report.scores.provenance.positions
    main = wording.main_condition(report.summaries)
    for summary in report.summaries:
        if summary.name == main:
            effect = wording.sentence(len(neurons.good), len(neurons.bad), summary)
            positions = wording.positions_sentence(selected_at, report.applied_at)
            paper = {selected_at, report.applied_at} == {SCORED}
            return effect if paper else f"{effect} ({positions}.)"
    where = "" if selected_at == SCORED else f", at {selected_at} positions"
    selected = (
        f"Selected {len(neurons.good)} good and {len(neurons.bad)} bad neurons of "
        f"{report.scores.score.size}{where}."
    )
    if report.selection_accuracy is None:
        return selected
    return f"{selected} {wording.selection_chance_sentence(report.selection_accuracy)}"


def page_facts(report: TaskReport) -> list[tuple[str, str]]:
    """Names and values below the headline."""
    origin = report.scores.provenance
    n_layers, width = report.scores.shape
    facts = [
        ("Model", f"{clipped(Path(origin.model).name, 48)}, {n_layers} × {width:,} neurons"),
        ("Neurons", f"{len(report.neurons.good):,} good, {len(report.neurons.bad):,} bad"),
        ("Selected on", f"{origin.n_questions:,} questions ({clipped(origin.split, 24)})"),
    ]
    if report.summaries:
        accuracy = report.summaries[0].accuracy
        split = clipped(report.split, 24)
        facts.append(("Evaluated on", f"{accuracy.n_questions:,} questions ({split})"))
        chance = wording.chance_text(report.summaries[0].chance)
        facts.append(("Accuracy, unmasked", f"{accuracy.unmasked:.1f}%{chance}"))
    return facts


def report_sections(report: TaskReport) -> list[Section]:
    """The sections of `report.html`."""
    return [*_effect_sections(report), *_detail_sections(report)]


def markdown_sections(report: TaskReport) -> list[Section]:
    """The sections of `report.md`, beginning with `console_sections`."""
    details = _detail_sections(report)
    provenance = replace(details.pop(), text=())  # its text is in the selection section
    return [*console_sections(report), *details, provenance]


def console_sections(report: TaskReport) -> list[Section]:
    """The sections that commands print."""
    return [*_effect_sections(report), _selection(report)]


def _detail_sections(report: TaskReport) -> list[Section]:
    sections: list[Section] = []
    condition = wording.main_condition(report.summaries)
    if report.answers is not None and condition is not None:
        flips = _present(flips_table(report, condition, gained) for gained in (False, True))
        if flips:
            sections.append(Section("flips", "Questions gained and lost", tables=flips))
        names = option_names(report.answers, report.doc_texts)
        shares = option_shares(report.answers, report.summaries, names)
        panels = tuple(charts.option_panels(shares))
        caption = "Bars: predicted options; lines: gold options."
        if len(panels) < len(shares.predicted):
            caption += f" Drawn: {len(panels)} of {len(shares.predicted)}; the table has all."
        figure = Figure(panels, caption)
        sections.append(
            Section(
                "options",
                "Predicted options",
                figures=(figure,),
                tables=(
                    shares_table(shares),
                    gold_table(report.answers, report.summaries, names),
                ),
            )
        )
        sections += _groups(report, condition)
    return [*sections, _neurons(report), _provenance(report)]


def _effect_sections(report: TaskReport) -> list[Section]:
    """The sections about the conditions' effects; none before validation."""
    if not report.summaries:
        return []
    return [_conditions(report), *_others(report), *_dose(report)]


def _present(tables: Iterable[Table | None]) -> tuple[Table, ...]:
    return tuple(table for table in tables if table is not None)


def _conditions(report: TaskReport) -> Section:
    accuracy = report.summaries[0].accuracy
    positions = wording.positions_sentence(report.scores.provenance.positions, report.applied_at)
    text = (
        f"Evaluated on {accuracy.n_questions} questions ({accuracy.n_docs} docs) of the "
        f"{data_text(report.split)} split; intervals and p are paired, by question. {positions}."
        f"{_matching(report)}"
    )
    summaries = wording.tested(report.summaries)
    chance = wording.chance_sentence_of_deltas(summaries, is_drawn=True)
    figures = (
        (
            Figure((charts.deltas(summaries),), _DELTAS_MARKS + chance),
            Figure((charts.flip_bars(summaries),), _FLIPS_MARKS),
        )
        if summaries
        else ()
    )
    tables = (
        conditions_table(report.summaries),
        *robust_tables(report.summaries),
        significance_table(report.summaries),
        cost_table(report.summaries),
        metrics_table(report.metrics),
    )
    return Section("conditions", "Effect of each condition", (text,), figures, _present(tables))


def _matching(report: TaskReport) -> str:
    """A sentence on random controls that match in more than the layer; empty if none do."""
    names = () if report.answers is None else report.answers.conditions
    if any(ConditionName.parse(name).match == ACTIVATION for name in names):
        return " Random controls match the neurons in layer and in mean size of activation."
    return ""


def _others(report: TaskReport) -> list[Section]:
    if not report.others:
        return []
    return [Section("others", "Effect on other tasks", (OTHERS_NOTE,), tables=others_table(report))]


def _dose(report: TaskReport) -> list[Section]:
    tables = tuple(dose_tables(report.summaries))
    if not tables:
        return []
    evaluated = [summary for summary in report.summaries if summary.is_evaluated]
    figures = []
    for title, conditions in SURFACES.items():
        points = [summary for summary in evaluated if summary.condition in conditions]
        if any(point.is_point for point in points):
            figures += [
                Figure(tuple(drawings), title=f"{title}, by {axis}")
                for axis, drawings in (
                    ("factor", charts.by_factor(points)),
                    ("number of neurons", charts.by_number(points)),
                )
                if drawings
            ]
    caption = _DOSE_MARKS + wording.chance_sentence_of_deltas(evaluated, is_drawn=True)
    figures[:1] = [replace(figure, caption=caption) for figure in figures[:1]]
    text = DOSE_NOTE + wording.chance_sentence_of_deltas(evaluated)
    return [Section("dose", "Dose-response", (text,), tuple(figures), tables)]


def _groups(report: TaskReport, condition: str) -> list[Section]:
    table = groups_table(report)
    if table is None:
        return []
    changes = [
        charts.GroupChange(
            one_line(group.name), group.accuracy[0], group.accuracy[1], chance=group.chance
        )
        for group in group_accuracies(report, (UNMASKED, condition))
    ]
    caption = "Accuracy on each group of questions; the largest losses come first."
    if len(changes) > charts.MOST_GROUPS:
        caption += f" Drawn: the {charts.MOST_GROUPS} of {len(changes)} that changed most."
    figure = Figure((charts.groups(changes, condition),), caption)
    return [Section("groups", "Accuracy by group", figures=(figure,), tables=(table,))]


def _selection(report: TaskReport) -> Section:
    """How the neurons were selected, in words, for pages without figures."""
    neurons = report.neurons
    good, bad = (
        " ".join(map(str, layer_counts(members, neurons.n_layers)))
        for members in (neurons.good, neurons.bad)
    )
    stability = stability_of(report.scores.half_sums, neurons.top_k)
    sentences = (
        wording.selection_sentence(report.scores.provenance),
        wording.stability_sentence(stability),
        f"Neurons by layer: good {good}; bad {bad}.",
        _label_sentence(report),
    )
    text = " ".join(filter(None, sentences))
    return Section("selection", "Selection", (text, *_docs_sentences(report)))


def _docs_sentences(report: TaskReport) -> tuple[str, ...]:
    sentences = (wording.docs_sentence(*counts) for counts in report.doc_counts.items())
    return tuple(filter(None, sentences))


def _neurons(report: TaskReport) -> Section:
    sets = (report.neurons.good, report.neurons.bad)
    counts = [layer_counts(neurons, report.neurons.n_layers) for neurons in sets]
    stability, gap = stability_table(report), gap_table(report.scores.provenance)
    correlation = f"rank correlation {stability.rows[0][1] or 'not defined'}"
    scatter = charts.halves(report.scores.half_sums, *sets, correlation)
    text = wording.gap_text(report.scores.provenance).capitalize()
    return Section(
        "neurons",
        "Selected neurons and their stability",
        () if gap is not None else (f"{text}.",),
        (
            Figure((charts.layers(*counts),), f"{_LAYERS_MARKS} {_label_sentence(report)}".strip()),
            Figure((scatter,), f"{_HALVES_MARKS}{_left_out(*sets)}"),
        ),
        _present((neurons_table(report), choice_table(report.choice), stability, gap)),
    )


def _left_out(good: Sequence[Neuron], bad: Sequence[Neuron]) -> str:
    """Which neurons a scatter does not draw; empty if it draws all."""
    shown = [
        f"the {charts.MOST_MARKS} strongest of {len(neurons):,} {name} ones"
        for name, neurons in (("good", good), ("bad", bad))
        if len(neurons) > charts.MOST_MARKS
    ]
    return f" Drawn: {' and '.join(shown)}." if shown else ""


def _provenance(report: TaskReport) -> Section:
    return Section(
        "provenance",
        "Provenance and commands",
        _docs_sentences(report),
        tables=(provenance_table(report),),
        commands=report.commands,
    )
