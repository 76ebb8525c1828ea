"""The parts of `report.html`: what is known of a run as text, figures and tables. Pure.

The tables are those of `report.md` (`report_tables`, `answer_tables`, `neuron_tables`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.formats.svg import Drawing, clipped
from neuronllm_eval.neurons.selection import layer_counts
from neuronllm_eval.reporting import charts
from neuronllm_eval.reporting import small_multiples as panels
from neuronllm_eval.reporting.answer_tables import (
    flips_table,
    group_rows,
    groups_table,
    letter_shares,
    letters_table,
)
from neuronllm_eval.reporting.condition_tables import (
    DOSE_NOTE,
    SURFACES,
    RunDetails,
    Table,
    conditions_table,
    dose_tables,
    evidence_table,
    metrics_table,
)
from neuronllm_eval.reporting.neuron_tables import (
    gap_table,
    neurons_table,
    provenance_table,
    stability_table,
)
from neuronllm_eval.reporting.report_markdown import TaskReport, docs_sentence, gap_text, places
from neuronllm_eval.reporting.wording import main_condition, tested

_DOSE_MARKS = (
    "In the panels, delta in points with its 95% interval; grey: the range of the point's own "
    "random controls; square: the unmasked model."
)


@dataclass(frozen=True)
class Figure:
    """Drawings with one caption.

    Attributes:
        drawings: one, or small multiples.
        caption: what they show, and how to read the marks; may be empty.
        title: a line above them; may be empty.
    """

    drawings: tuple[Drawing, ...]
    caption: str = ""
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its id.
        title: its heading.
        text: paragraphs.
        figures: beside each other where there is room.
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


def page_facts(report: TaskReport) -> list[tuple[str, str]]:
    """What stands below the headline."""
    known = report.scores.provenance
    n_layers, width = report.scores.shape
    found = [
        ("Model", f"{clipped(Path(known.model).name, 48)}, {n_layers} × {width:,} neurons"),
        ("Neurons", f"{len(report.neurons.good):,} good, {len(report.neurons.bad):,} bad"),
        ("Chosen on", f"{known.n_questions:,} questions ({clipped(known.split, 24)})"),
    ]
    if report.summaries:
        first = report.summaries[0].accuracy
        found.append(
            ("Judged on", f"{first.n_questions:,} questions ({clipped(report.split, 24)})")
        )
        found.append(("Accuracy, unmasked", f"{first.unmasked:.1f}%"))
    return found


def page_sections(report: TaskReport, details: RunDetails) -> list[Section]:
    found: list[Section | None] = []
    if report.summaries:
        found += [_conditions(report), _dose(report)]
    condition = main_condition(report.summaries)
    if details.table is not None and condition is not None:
        found += [
            _flips(details, condition),
            _letters(report, details),
            _groups(report, details, condition),
        ]
    found += [_neurons(report, details), _provenance(report, details)]
    return [section for section in found if section is not None]


def _conditions(report: TaskReport) -> Section:
    known = tested(report.summaries)
    first = report.summaries[0].accuracy
    text = (
        f"Judged on {first.n_questions} questions ({first.n_docs} docs) of the "
        f"{one_line(report.split)} split; intervals and p are paired, by question. "
        f"{places(report.scores.provenance.positions, report.applied_at)}.",
    )
    figures = (
        Figure(
            (charts.deltas(known),),
            "Filled: p below 0.05 after Holm's correction; hollow: not. Random controls: from the "
            "lowest to the highest.",
        ),
        Figure(
            (charts.flip_bars(known),),
            "Docs whose answer became wrong, or right, against the unmasked run.",
        ),
    )
    tables = (conditions_table(report.summaries), evidence_table(report.summaries))
    return Section(
        "conditions",
        "What each condition did",
        text,
        figures if known else (),
        tuple(table for table in tables if table is not None),
    )


def _dose(report: TaskReport) -> Section | None:
    tables = dose_tables(report.summaries)
    if not tables:
        return None
    figures = []
    for title, conditions in SURFACES.items():
        points = [
            each for each in report.summaries if each.condition in conditions and each.is_evaluated
        ]
        if not any(each.is_point for each in points):
            continue
        for kind, drawings in (
            ("by factor", panels.by_factor(points)),
            ("by number of neurons", panels.by_number(points)),
        ):
            if drawings:
                figures.append(Figure(tuple(drawings), title=f"{title}, {kind}"))
    return Section(
        "dose", "Dose and response", (DOSE_NOTE, _DOSE_MARKS), tuple(figures), tuple(tables)
    )


def _flips(details: RunDetails, condition: str) -> Section | None:
    found = (flips_table(details, condition, gained) for gained in (False, True))
    tables = tuple(table for table in found if table is not None)
    return Section("flips", "Questions won and lost", tables=tables) if tables else None


def _letters(report: TaskReport, details: RunDetails) -> Section:
    assert details.table is not None
    shares = letter_shares(details.table, report.summaries)
    tables = (letters_table(shares), metrics_table(report.metrics))
    caption = "Bars: letters said; lines: where the right options are."
    return Section(
        "letters",
        "Letters before and after",
        (),
        (Figure(tuple(panels.letter_panels(shares)), caption),),
        tuple(table for table in tables if table is not None),
    )


def _groups(report: TaskReport, details: RunDetails, condition: str) -> Section | None:
    table = groups_table(details, report.summaries)
    if table is None:
        return None
    found = group_rows(details, ("unmasked", condition))
    before, after = zip(*(each.accuracy for each in found), strict=True)
    names = [one_line(each.name) for each in found]
    drawing = charts.groups(names, before, after, condition)
    caption = "Accuracy on each group of questions; those that lost most stand first."
    return Section("groups", "By family or subject", (), (Figure((drawing,), caption),), (table,))


def _neurons(report: TaskReport, details: RunDetails) -> Section:
    sets = (report.neurons.good, report.neurons.bad)
    counts = [layer_counts(each, report.neurons.n_layers) for each in sets]
    stability = stability_table(report)
    said = f"rank correlation {stability.rows[0][1] or 'not defined'}"
    figures = (
        Figure((charts.layers(*counts),), "Chosen neurons by layer: good ones up, bad ones down."),
        Figure(
            (charts.halves(report.scores.half_sums, *sets, said),),
            "The chosen neurons' scores from either half of the questions that chose them; on the "
            "dashed line the halves agree.",
        ),
    )
    gap = gap_table(report.scores.provenance)
    text = () if gap is not None else (f"{gap_text(report.scores.provenance).capitalize()}.",)
    tables = (neurons_table(report, details), stability, gap)
    return Section(
        "neurons",
        "Where the neurons sit, and how firm the choice is",
        text,
        figures,
        tuple(table for table in tables if table is not None),
    )


def _provenance(report: TaskReport, details: RunDetails) -> Section:
    said = (docs_sentence(role, counts, one_line) for role, counts in report.docs.items())
    return Section(
        "provenance",
        "Provenance, and the same again",
        tuple(filter(None, said)),
        (),
        (provenance_table(report),),
        details.commands,
    )
