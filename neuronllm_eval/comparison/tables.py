"""Rows as people read them: which columns, in which words, with which legend. Pure.

1. `ranked_sections`: a row for each row, as `compare --rank` shows them.
2. `side_by_side`: methods below each other, conditions beside each other, as `compare` shows them.

Figures are rounded as in `report.md`. What is the same in every row is said once, above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from neuronllm_eval.comparison.comparability import ComparableSet
from neuronllm_eval.comparison.labels import directories, last_part, method_labels, model_labels
from neuronllm_eval.comparison.method_differences import Difference, unpaired
from neuronllm_eval.comparison.pooling import PAPERS, SWAPPED, RepeatKey
from neuronllm_eval.comparison.ranking import RankedRows
from neuronllm_eval.comparison.rows import ComparedRun, Row
from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.formats.tables import Section
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, factor_text
from neuronllm_eval.reporting.wording import p_text

# Columns of `--columns` and their heads, in order.
HEADS = {
    "rank": "rank",
    "set": "set",
    "model": "model",
    "task": "task",
    "method": "method",
    "seed": "seed",
    "n_runs": "runs",
    "run": "run",
    "condition": "condition",
    "top_k": "K",
    "found": "good/bad",
    "scale": "factor",
    "n_questions": "questions",
    "accuracy": "accuracy %",
    "note": "edited",
    "delta": "delta (points)",
    "interval": "95% interval",
    "p_holm": "p (Holm)",
    "mcnemar": "McNemar p (Holm)",
    "flips": "lost, gained",
    "controls": "controls outdone",
    "rac": "RAC %",
    "rcc": "RCC %",
    "consistent": "consistent %",
    "consistent_delta": "consistent change",
    "position_bias": "position bias %",
    "position_bias_delta": "position bias change",
    "majority": "majority %",
}
_ON_REQUEST = ("mcnemar", "flips", "rac", "rcc")
_SAID_ONCE = ("model", "task", "method", "seed", "n_runs", "top_k", "n_questions")
# Those that a page of print has room for, in small print, besides what tells the rows apart.
_SHORT = {
    **{name: HEADS[name] for name in ("set", "model", "task", "method", "seed", "run")},
    "condition": "condition",
    "top_k": "K",
    "scale": "factor",
    "accuracy": "acc. %",
    "delta": "delta",
    "interval": "95% interval",
    "controls": "controls",
}
_NOTE = (
    "Rank: within a task, a condition and a set, by the delta in the condition's direction. Delta "
    "and changes: points against the unmasked run; 95% interval and p paired, by question, p "
    "corrected for the run's conditions (a point's for its points too). Good/bad: neurons that "
    "there were, where these are fewer than K. Edited: what there was not to edit; a condition "
    "that edits nothing is not evaluated. Controls outdone: layer-matched random neurons under the "
    "same operation. Consistent: questions answered correctly under every order of the options; "
    "majority: whose most frequent answer is correct; position bias: total variation distance "
    "between predicted and gold letters."
)


def in_words(frame: pd.DataFrame) -> pd.DataFrame:
    """All columns of `HEADS` as text; empty where there is nothing."""
    models = list(zip(frame["model"], frame["model_hash"], frame["dtype"], strict=True))
    model = model_labels(models)
    methods = zip(frame["model_hash"], frame["task"], frame["method"], frame["method_settings"],
                  strict=True)  # fmt: skip
    directory, _ = directories(list(frame["run"]))
    words = {
        "rank": _of(frame["rank"], frame["n_ranked"].where(frame["n_ranked"] > 1)),
        "model": [model[digest] for digest in frame["model_hash"]],
        "method": method_labels(list(methods)),
        "seed": list(frame["seeds"]),
        "run": [directory[path] for path in frame["run"]],
        "found": [
            "" if pd.isna(k) or (good, bad) == (k, k) else f"{_text(good)}/{_text(bad)}"
            for k, good, bad in zip(frame["top_k"], frame["n_good"], frame["n_bad"], strict=True)
        ],
        "interval": [
            "" if pd.isna(low) else f"{low:+.1f} to {high:+.1f}"
            for low, high in zip(frame["low"], frame["high"], strict=True)
        ],
        "mcnemar": _cells(frame["mcnemar_p_holm"], p_text),
        "flips": [
            "" if pd.isna(lost) else f"{lost}, {gained}"
            for lost, gained in zip(frame["n_lost"], frame["n_gained"], strict=True)
        ],
        "controls": _of(frame["controls_outdone"], frame["n_controls"]),
    }
    formats: dict[str, Callable[..., str]] = {"task": one_line, "scale": factor_text,
                                              "p_holm": p_text}  # fmt: skip
    formats |= dict.fromkeys(("accuracy", "consistent", "position_bias", "majority"), _level)
    formats |= dict.fromkeys(("delta", "rac", "rcc", "consistent_delta", "position_bias_delta"),
                             _points)  # fmt: skip
    for name in HEADS:
        if name not in words:
            words[name] = _cells(frame[name], formats.get(name, str))
    return pd.DataFrame(words, index=frame.index, columns=list(HEADS), dtype=object)


def _cells(values: pd.Series, text: Callable[..., str]) -> list[str]:
    return ["" if pd.isna(value) else text(value) for value in values]


def _text(value: object) -> str:
    return "?" if pd.isna(value) else str(value)  # repeats differ


def _level(value: float) -> str:
    return f"{value:.1f}"


def _points(value: float) -> str:
    return f"{value:+.1f}"


def _of(values: pd.Series, totals: pd.Series) -> list[str]:
    pairs = zip(values, totals, strict=True)
    return ["" if pd.isna(one) or pd.isna(of) else f"{one} of {of}" for one, of in pairs]


# Ranked -----------------------------------------------------------------------------------------


def ranked_sections(
    found: RankedRows, group_by: str, columns: Sequence[str] = (), *, short: bool = False
) -> list[Section]:
    """A section with the table of each group, and what explains them all.

    Args:
        found: the rows, in order.
        group_by: one of `ranking.GROUPS`.
        columns: names of `HEADS`, which are shown in that order whatever they hold; all that tell
            something if empty.
        short: whether a page of print has to be wide enough for those that are not chosen.
    """
    words = in_words(found.frame)
    alike = _alike(words, (group_by, *columns))
    if columns:
        heads = {name: HEADS[name] for name in columns}
    else:
        hidden = {group_by, *alike, *_ON_REQUEST, *_needless(found.sets, words)}
        heads = {n: h for n, h in HEADS.items() if n not in hidden and (words[n] != "").any()}
        heads = _shortened(heads, words) if short else heads
    sections = _said_once(alike)
    for title, rows in words.groupby(words[group_by], sort=False):
        unmasked = rows["condition"] == UNMASKED
        # No method has a part in it: runs that agree on it need one row.
        rows = rows.assign(**{name: rows[name].mask(unmasked, "") for name in ("method", "run")})
        shown = rows[list(heads)].rename(columns=heads)
        once = ~(shown.duplicated() & unmasked)
        sections.append(Section(str(title), shown[once].reset_index(drop=True)))
    _, above = directories(list(found.frame["run"]))
    where = [f"Directories are below {one_line(above)}."] if above and "run" in heads else []
    return [*sections, Section("", None, (_NOTE, *where, *legend(found.sets)))]


def _alike(words: pd.DataFrame, but: Sequence[str]) -> dict[str, str]:
    """Columns with the same text in all rows of conditions, and that text."""
    masked = words[words["condition"] != UNMASKED]
    telling = words if masked.empty else masked
    names = [name for name in _SAID_ONCE if name not in but and telling[name].nunique() == 1]
    return {name: telling[name].iloc[0] for name in names}


def _said_once(alike: Mapping[str, str]) -> list[Section]:
    said = ", ".join(
        f"{HEADS[name]} {text}" for name, text in alike.items() if (name, text) != ("n_runs", "1")
    )
    return [Section("", None, (f"The same in all rows: {said}.",))] if said else []


def _needless(sets: Sequence[ComparableSet], words: pd.DataFrame) -> set[str]:
    """Sets where each task has one, and directories where the rest tells the rows apart."""
    hidden = set()
    if all(each.letter == "a" for each in sets):
        hidden.add("set")
    names = ["set", "model", "task", "method", "seed", "condition", "top_k", "scale"]
    if not words[words["condition"] != UNMASKED].duplicated(names).any():
        hidden.add("run")
    return hidden


def _shortened(heads: dict[str, str], words: pd.DataFrame) -> dict[str, str]:
    kept = {name: head for name, head in _SHORT.items() if name in heads}
    names = ["set", "model", "task", "method", "seed", "run", "condition", "top_k"]
    if not words.duplicated(names).any():  # a condition has its factor but for points of sweeps
        kept.pop("scale", None)
    return kept


def legend(sets: Sequence[ComparableSet]) -> list[str]:
    """In words, in what the sets of each task that has several differ."""
    sentences = []
    for task in dict.fromkeys(each.task for each in sets):
        of_task = [each for each in sets if each.task == task]
        if len(of_task) > 1:
            first = of_task[0].terms
            parts = [
                f"a: {_runs(of_task[0])}, {first.n_questions or 'all'} questions of the "
                f"{first.split} split" + (f", K {first.top_k}" if first.top_k else ""),
                *(f"{each.letter}: {_runs(each)}, {', '.join(each.differs)}"
                  for each in of_task[1:]),
            ]  # fmt: skip
            words = "; ".join(one_line(part, 10_000) for part in parts).rstrip(".")
            sentences.append(
                f"{one_line(task)} has results that cannot be compared with each other, by set. "
                f"{words}."
            )
    return sentences


def _runs(each: ComparableSet) -> str:
    return f"{each.n_runs} run{'s' if each.n_runs > 1 else ''}"


def unfinished(runs: Sequence[ComparedRun]) -> list[Section]:
    """Runs that have no results yet, and the command they need; nothing if all have."""
    titles = {"validate": "Not validated yet", "report": "Validated, but without summary.json"}
    sections = []
    for missing, title in titles.items():
        rows = [
            [one_line(last_part(run.facts.model)), one_line(run.facts.task),
             one_line(run.facts.method), one_line(f"neuronllm-eval {missing} {run.facts.path}", 1000)]
            for run in runs if run.missing == missing
        ]  # fmt: skip
        if rows:
            heads = ["model", "task", "method", "next command"]
            sections.append(Section(title, pd.DataFrame(rows, columns=heads, dtype=object)))
    return sections


# Side by side -----------------------------------------------------------------------------------

_SHOWN = tuple(name for name in CONDITIONS if name != UNMASKED)
_LEAD = ("set", "model", "task", "top_k", "method", "found", "n_runs")
_TABLE_NOTE = (
    "Accuracy: points against unmasked (percent). Brackets: 95% interval of that cell alone, "
    "paired, by question. K: neurons of each kind that were asked for; good/bad: that there were, "
    "where these are fewer. Runs: repeats with other seeds, which are pooled; a question that "
    "several of them ask is one. A condition without neurons to edit is not evaluated; good only: "
    "of the two kinds that it edits there was one. --rank, csv and json have each run by itself."
)
_TESTS_NOTE = (
    "p by question, McNemar's exact p by doc (docs lost, gained): both after Holm's correction for "
    "so many tests, the conditions of the row; those that edit the same neurons by the same "
    "factors are one. McNemar's test takes the docs of a question, and of repeats that ask it "
    "again, as independent: quote p by question."
)
_CONTROLS_NOTE = (
    "Among the condition and its random controls, 1 being beyond all of them on the expected side, "
    "with its one-sided empirical p, not corrected. Repeats are pooled: their first controls are "
    "one, over the docs of all, and so on."
)
_SECONDS_NOTE = (
    "What each stage took when it was done, in this call or an earlier one. Methods that are "
    "identified together share one pass over the questions, which has one time."
)
_RELATIVE_NOTE = "RAC, RCC: change of accuracy, of confidence, in percent of the unmasked."


def side_by_side(
    found: RankedRows, rows: Sequence[Row], differences: Sequence[Difference], group_by: str | None
) -> list[Section]:
    """Tables with a row for each method and K, a column for each condition.

    Args:
        found: `ranked` of the rows.
        rows: pooled, in order.
        differences: of methods to the one they are held against.
        group_by: one of `ranking.GROUPS`, for tables of each; None for tables of all.
    """
    words = in_words(found.frame)
    words["found"] = [_sizes(row) for row in rows]
    alike = _alike(words, ("method", "top_k", *([group_by] if group_by else [])))
    hidden = {*alike, *_needless(found.sets, words), group_by}
    lead = [n for n in _LEAD if n not in hidden and (words[n] != "").any()]
    groups: Iterable[tuple[object, list[int]]] = [("", list(words.index))]
    if group_by:
        groups = [(g, list(own.index)) for g, own in words.groupby(group_by, sort=False)]
    sections = _said_once(alike)
    for group, index in groups:
        leads = [tuple(words.loc[i, lead]) for i in index]
        tables = _tables([rows[i] for i in index], leads, [HEADS[name] for name in lead])
        before = f"{group}: " if group else ""
        sections += [Section(before + t, table, notes) for t, table, notes in tables]
    sections += _across(found, words, rows, differences)
    if sentences := legend(found.sets):
        sections.append(Section("", None, tuple(sentences)))
    return sections


_Table = tuple[str, pd.DataFrame, tuple[str, ...]]


def _tables(
    rows: Sequence[Row], leads: Sequence[tuple[str, ...]], heads: Sequence[str]
) -> Iterable[_Table]:
    def table(
        cell: Callable[[Row], str],
        conditions: Sequence[str] = _SHOWN,
        extra: Mapping[str, Callable[[Row], str]] | None = None,
    ) -> pd.DataFrame:
        cells = [
            (lead, row.condition.replace("_", " "), _with_note(cell(row), row.note))
            for name in conditions
            for lead, row in zip(leads, rows, strict=True)
            if row.condition == name
        ]
        for head, text in (extra or {}).items():
            values = [(lead, head, text(row)) for lead, row in zip(leads, rows, strict=True)]
            cells = [*(value for value in values if value[2]), *cells]
        return _pivot(cells, heads, dict.fromkeys(leads))

    yield ("Accuracy under each condition", table(_delta, (UNMASKED, *_SHOWN, SWAPPED)),
           (_TABLE_NOTE,))  # fmt: skip
    yield "Neurons that each condition edits", table(_edited), ()
    yield ("Tests of these changes: p, McNemar's p", table(_tests, extra={"tests": _n_tests}),
           (_TESTS_NOTE,))  # fmt: skip
    if any(row.summary.n_controls for row in rows):
        yield "Rank among random controls", table(_control_rank), (_CONTROLS_NOTE,)
    relative = [
        (lead, f"{row.condition} {measure.upper()} %", _relative(row, measure))
        for lead, row in zip(leads, rows, strict=True)
        for measure in row.relative
    ]
    order = [f"{name} {measure} %" for name in PAPERS for measure in ("RAC", "RCC")]
    relative.sort(key=lambda cell: order.index(cell[1]))
    if relative:
        yield "Relative changes", _pivot(relative, heads, dict.fromkeys(leads)), (_RELATIVE_NOTE,)


def _across(
    found: RankedRows,
    words: pd.DataFrame,
    rows: Sequence[Row],
    differences: Sequence[Difference],
) -> list[Section]:
    """Enhance minus degrade, and how methods differ in it: a column for each model and task."""
    several = words["model"].nunique() > 1
    places: dict[RepeatKey, tuple[tuple[str, str], str]] = {}
    keys = {}
    for row, (_, line) in zip(rows, words.iterrows(), strict=True):
        key = key_of(row)
        letter = f" (set {line['set']})" if any(s.letter != "a" for s in found.sets) else ""
        column = f"{line['model']}: {line['task']}" if several else line["task"]
        places[key] = ((str(row.top_k), line["method"]), column + letter)
        keys[key] = row
    swapped = [row for row in rows if row.condition == SWAPPED]

    def table(cells: Mapping[RepeatKey, str]) -> pd.DataFrame:
        order = sorted(cells, key=lambda key: key.top_k)
        columns = dict.fromkeys(places[key][1] for key in cells)
        triples = [(*places[key], cells[key]) for key in order]
        return _pivot(triples, ("K", "method"), dict.fromkeys(t[0] for t in triples), columns)

    sections = []
    if swapped:
        title = "Enhance minus degrade, points"
        sections.append(Section(title, table({key_of(row): _interval(row) for row in swapped})))
    against = " or ".join(dict.fromkeys(places[each.against][0][1] for each in differences))
    left = [places[key] for key in unpaired([key_of(row) for row in swapped], differences)]
    if differences:
        cells = {each.key: _difference(each) for each in differences}
        note = (
            "On the same questions and seeds, by question; p: of the signs of the questions' "
            f"differences, corrected (Holm) for all methods held against {against} at the same K, "
            "model and task. The interval is of that cell alone, so where the two disagree, go by "
            "p."
        )
        title = f"Enhance minus degrade less that of {against}, points"
        sections.append(Section(title, table(cells), (note,)))
    if left:
        names = ", ".join(f"{method} ({column}, K {top_k})" for (top_k, method), column in left)
        note = (
            f"Not held against {against or 'another method'}, since no run of it has the same "
            f"terms, seeds and docs: {names}. `--rank` says in what runs differ."
        )
        sections.append(Section("", None, (note,)))
    return sections


def key_of(row: Row) -> RepeatKey:
    """The key of pooled repeats (`pooling.repeats`)."""
    run = row.run
    return RepeatKey(run.model, run.model_hash, run.task, row.terms, row.top_k, run.method,
                     run.settings)  # fmt: skip


def _pivot(
    cells: Iterable[tuple[tuple[str, ...], str, str]],
    heads: Sequence[str],
    leads: Mapping[tuple[str, ...], object],
    columns: Iterable[str] | None = None,
) -> pd.DataFrame:
    """A row for each lead, a column for each name, in order of appearance."""
    cells = list(cells)
    names = list(columns or dict.fromkeys(name for _, name, _ in cells))
    known = {(lead, name): text for lead, name, text in cells}
    lines = [
        [*lead, *(known.get((lead, name), "") for name in names)]
        for lead in leads
        if any((lead, name) in known for name in names)
    ]
    return pd.DataFrame(lines, columns=[*heads, *names], dtype=object)


def seconds_section(seconds: Mapping[str, float]) -> list[Section]:
    """What stages took; nothing if that is not known."""
    rows = [[one_line(stage), f"{taken:.1f}"] for stage, taken in seconds.items()]
    table = pd.DataFrame(rows, columns=["stage", "s"], dtype=object)
    return [Section("Seconds", table, (_SECONDS_NOTE,))] if rows else []


# Cells ------------------------------------------------------------------------------------------


def _sizes(row: Row) -> str:
    """Good and bad neurons of each repeat, where these are fewer than K."""
    sizes = sorted(set(zip(row.n_good, row.n_bad, strict=True)))
    if sizes == [(row.top_k, row.top_k)]:
        return ""
    return " | ".join(f"{good}/{bad}" for good, bad in sizes)


def _with_note(text: str, note: str) -> str:
    """A cell, and what its condition had not to edit; that alone where nothing is measured."""
    if text in ("", "0"):
        return note
    return f"{text} ({note})" if note else text


def _delta(row: Row) -> str:
    return f"{row.summary.accuracy.condition:.1f}" if row.condition == UNMASKED else _interval(row)


def _interval(row: Row) -> str:
    change = row.summary.accuracy
    if not row.is_evaluated:
        return ""
    return f"{change.delta:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"


def _edited(row: Row) -> str:
    return " / ".join(dict.fromkeys(str(each.n_neurons) for each in row.edited))


def _tests(row: Row) -> str:
    corrected, mcnemar = row.summary.corrected, row.summary.mcnemar
    if corrected is None or mcnemar is None:
        return ""
    p_values = f"{p_text(corrected.p_value)}, {p_text(corrected.mcnemar_p_value)}"
    return f"{p_values} ({mcnemar.n_lost}, {mcnemar.n_gained})"


def _n_tests(row: Row) -> str:
    return "" if row.summary.corrected is None else str(row.summary.corrected.n_tests)


def _control_rank(row: Row) -> str:
    controls = row.summary.controls
    if controls is None or not controls.n_controls:
        return ""
    return f"{controls.n_as_extreme + 1} of {controls.n_controls + 1}, {p_text(controls.p_value)}"


def _relative(row: Row, measure: str) -> str:
    change = row.relative[measure]
    if math.isnan(change.change):
        return ""
    bounds = "" if math.isnan(change.low) else f" [{change.low:+.1f}, {change.high:+.1f}]"
    return f"{change.change:+.1f}{bounds}"


def _difference(each: Difference) -> str:
    change = each.change
    fewer = f" ({len(each.seeds)} of {each.n_repeats} seeds)"
    return (
        f"{change.delta:+.1f} [{change.low:+.1f}, {change.high:+.1f}] p {p_text(each.p_holm)}"
        f"{fewer if len(each.seeds) < each.n_repeats else ''}"
    )
