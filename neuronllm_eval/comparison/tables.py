"""Comparisons as sections of a page: which columns and tables, with which legend. Pure.

1. `ranked_sections`: a row for each row, as `compare --rank` shows them.
2. `side_by_side`: a row for each method and K, a column for each condition, as `compare` does.

What is the same in every row is said once, above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from neuronllm_eval.comparison.comparability import ComparableSet
from neuronllm_eval.comparison.pooling import PAPERS, SWAPPED, Difference, RepeatKey, unpaired
from neuronllm_eval.comparison.ranking import RankedRows
from neuronllm_eval.comparison.rows import ComparedRun
from neuronllm_eval.comparison.words import (
    HEADS,
    directories,
    in_words,
    last_part,
    side_by_side_cells,
)
from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.formats.tables import Section
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED
from neuronllm_eval.reporting.wording import p_text

_ON_REQUEST = ("mcnemar", "flips", "control_rank", "rac", "rcc", "top_answer", "calibrated",
               "calibrated_change", "calibrated_p_holm", "balanced", "balanced_change",
               "balanced_p_holm", "option_mass", "option_mass_relative", "kl",
               "perplexity")  # fmt: skip
_SAID_ONCE = ("model", "task", "method", "seed", "n_runs", "top_k", "n_questions", "chance")
# Those that a page of print has room for.
_PRINT = ("set", "model", "task", "method", "seed", "run", "condition", "top_k", "scale",
          "accuracy", "delta", "interval", "controls")  # fmt: skip
_NOTE = (
    "Rank: within a task, a condition and a set, by the delta in the condition's direction. Delta "
    "and changes: points against the unmasked run; 95% interval and p paired, by question, p "
    "corrected for the run's conditions (a point's for its points too). Good/bad: neurons that "
    "there were, where these are fewer than K. Edited: what there was not to edit; a condition "
    "that edits nothing is not evaluated. Controls outdone: layer-matched random neurons under the "
    "same operation. Consistent: questions answered correctly on every prompt; "
    "majority: whose most frequent answer is correct; position bias: total variation distance "
    "between predicted and gold letters; one answer: 90% or more of the docs have the same. Other "
    "tasks: mean change over those of validate --also."
)


# Ranked -----------------------------------------------------------------------------------------


def ranked_sections(
    ranked: RankedRows, group_by: str, columns: Sequence[str] = (), *, is_print: bool = False
) -> list[Section]:
    """A section with the table of each group, and what explains them all.

    Args:
        ranked: the rows, in order.
        group_by: one of `ranking.GROUPS`.
        columns: names of `HEADS`, which are shown in that order whatever they hold; all that tell
            something if empty.
        is_print: whether a page of print has to be wide enough where none are chosen.
    """
    words = in_words(ranked.frame)
    constant = _constant(words, (group_by, *columns))
    if columns:
        heads = {name: HEADS[name] for name in columns}
    else:
        hidden = {group_by, *constant, *_ON_REQUEST, *_needless(ranked.sets, words)}
        if is_print:
            hidden |= HEADS.keys() - set(_PRINT)
            if (ranked.frame["name"] == ranked.frame["condition"]).all():
                hidden.add("scale")  # only points of sweeps have factors that conditions do not say
        heads = {n: h for n, h in HEADS.items() if n not in hidden and (words[n] != "").any()}
    sections = _said_once(constant)
    for title, rows in words.groupby(words[group_by], sort=False):
        unmasked = rows["condition"] == UNMASKED
        # No method has a part in it: runs that agree on it need one row.
        rows = rows.assign(**{name: rows[name].mask(unmasked, "") for name in ("method", "run")})
        shown = rows[list(heads)].rename(columns=heads)
        once = ~(shown.duplicated() & unmasked)
        sections.append(Section(str(title), shown[once].reset_index(drop=True)))
    _, above = directories(list(ranked.frame["run"]))
    where = [f"Directories are below {one_line(above)}."] if above and "run" in heads else []
    return [*sections, Section("", None, (_NOTE, *where, *legend(ranked.sets)))]


def _constant(words: pd.DataFrame, but: Sequence[str]) -> dict[str, str]:
    """Columns with the same text in all rows of conditions, and that text."""
    masked = words[words["condition"] != UNMASKED]
    telling = words if masked.empty else masked
    names = [name for name in _SAID_ONCE if name not in but and telling[name].nunique() == 1]
    return {name: telling[name].iloc[0] for name in names}


def _said_once(constant: Mapping[str, str]) -> list[Section]:
    listed = ", ".join(
        f"{HEADS[name]} {text}"
        for name, text in constant.items()
        if text and (name, text) != ("n_runs", "1")
    )
    return [Section("", None, (f"The same in all rows: {listed}.",))] if listed else []


def _needless(sets: Sequence[ComparableSet], words: pd.DataFrame) -> set[str]:
    """Sets where each task has one, and directories where the rest tells the rows apart."""
    hidden = set()
    if all(one.letter == "a" for one in sets):
        hidden.add("set")
    names = ["set", "model", "task", "method", "seed", "condition", "top_k", "scale"]
    if not words[words["condition"] != UNMASKED].duplicated(names).any():
        hidden.add("run")
    return hidden


def legend(sets: Sequence[ComparableSet]) -> list[str]:
    """In words, in what the sets of each task that has several differ."""
    sentences = []
    for task in dict.fromkeys(one.task for one in sets):
        of_task = [one for one in sets if one.task == task]
        if len(of_task) > 1:
            first = of_task[0].terms
            parts = [
                f"a: {_runs(of_task[0])}, {first.n_questions or 'all'} questions of the "
                f"{first.split} split" + (f", K {first.top_k}" if first.top_k else ""),
                *(f"{one.letter}: {_runs(one)}, {', '.join(one.differs)}"
                  for one in of_task[1:]),
            ]  # fmt: skip
            words = "; ".join(one_line(part, 10_000) for part in parts).rstrip(".")
            sentences.append(
                f"{one_line(task)} has results that cannot be compared with each other, by set. "
                f"{words}."
            )
    return sentences


def _runs(comparable: ComparableSet) -> str:
    return f"{comparable.n_runs} run{'s' if comparable.n_runs > 1 else ''}"


def unfinished(runs: Sequence[ComparedRun]) -> list[Section]:
    """Runs that have no results yet, and the command they need; nothing if all have."""
    titles = {"validate": "Not validated yet", "report": "Validated, but without summary.json"}
    sections = []
    for missing, title in titles.items():
        rows = [
            {
                "model": one_line(last_part(run.facts.model)),
                "task": one_line(run.facts.task),
                "method": one_line(run.facts.method),
                "next command": one_line(f"neuronllm-eval {missing} {run.facts.path}", 1000),
            }
            for run in runs
            if run.missing == missing
        ]
        if rows:
            sections.append(Section(title, pd.DataFrame(rows)))
    return sections


# Side by side -----------------------------------------------------------------------------------

_SHOWN = tuple(name for name in CONDITIONS if name != UNMASKED)
_ALL = (UNMASKED, *_SHOWN, SWAPPED)
_LEAD = ("set", "model", "task", "K", "method", "found", "n_runs")
_TABLE_NOTE = (
    "Unmasked: accuracy in percent. Conditions: change of accuracy in points, with its paired 95% "
    "interval by question in brackets, of that cell alone. K: neurons requested of each set, good "
    "and bad; good/bad: neurons selected, where these are fewer. Runs: repeats with other seeds, "
    "which are pooled; a question that occurs in several of them counts once. A condition with no "
    "neurons to edit is not evaluated; good only: of the two sets that it edits, bad was empty; "
    "one answer: 90% or more of the docs have the same. --rank and json show every run by itself."
)
_CALIBRATED_NOTE = (
    "The same after each option's mean log-probability over a run's docs, under the condition, is "
    "removed (batch calibration): what moves all answers to one option changes nothing here."
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
_AGAINST_NOTE = (
    "On the same questions and seeds, by question; p: of the signs of the questions' differences, "
    "corrected (Holm) for all methods held against {} at the same K, model and task. The interval "
    "is of that cell alone, so where the two disagree, go by p."
)


def side_by_side(
    ranked: RankedRows,
    keys: Sequence[RepeatKey],
    differences: Sequence[Difference],
    group_by: str | None,
) -> list[Section]:
    """Tables with a row for each method and K, a column for each condition.

    Args:
        ranked: pooled rows, in the order of `pooling.repeats`.
        keys: of the rows.
        differences: of methods to the one they are held against.
        group_by: one of `ranking.GROUPS`, for tables of each; None for tables of all.
    """
    if ranked.frame.empty:
        return []
    words = in_words(ranked.frame)
    constant = _constant(words, ("method", "top_k", group_by or ""))
    hidden = {*constant, *_needless(ranked.sets, words), group_by}
    n_tests = ranked.frame["n_tests"].groupby([keys.index(key) for key in keys]).transform("max")
    words["tests"] = n_tests.astype("string").fillna("")
    words["K"] = [str(key.top_k) for key in keys]
    all_there = words["K"] + "/" + words["K"]
    words["found"] = ranked.frame["n_neurons"].where(ranked.frame["n_neurons"] != all_there, "")
    lead = [name for name in _LEAD if name not in hidden and (words[name] != "").any()]
    cells = side_by_side_cells(ranked.frame, words)
    groups: list[tuple[Any, pd.DataFrame]] = [("", words)]
    if group_by:
        groups = list(words.groupby(group_by, sort=False))
    sections = _said_once(constant)
    for group, rows in groups:
        before = f"{group}: " if group else ""
        sections += [
            Section(before + title, table, notes)
            for title, table, notes in _tables(rows, cells.loc[rows.index], lead)
            if len(table)
        ]
    sections += _differences(words, keys, lead, differences)
    sentences = legend(ranked.sets)
    return [*sections, *([Section("", None, tuple(sentences))] if sentences else [])]


def _tables(
    words: pd.DataFrame, cells: pd.DataFrame, lead: Sequence[str]
) -> Iterable[tuple[str, pd.DataFrame, tuple[str, ...]]]:
    """Titles, tables and notes."""
    conditions = words["condition"].str.replace("_", " ")

    def table(column: str, names: Sequence[str], more: Sequence[str] = ()) -> pd.DataFrame:
        shown = words["condition"].isin(names) & (cells[column] != "")
        rows = words.loc[shown, [*lead, *more]]
        columns = [name.replace("_", " ") for name in names]
        return _pivot(rows, conditions[shown], cells.loc[shown, column], columns)

    chance = ["chance"] if "chance" not in lead and words["chance"].nunique() > 1 else []
    yield "Accuracy under each condition", table("change", _ALL, chance), (_TABLE_NOTE,)
    yield (
        "Calibrated accuracy under each condition",
        table("calibrated", _ALL, chance),
        (_CALIBRATED_NOTE,),
    )
    yield "Neurons that each condition edits", table("edited", _SHOWN), ()
    yield (
        "Tests of these changes: p, McNemar's p",
        table("tests", _SHOWN, ["tests"]),
        (_TESTS_NOTE,),
    )
    yield "Rank among random controls", table("control_rank", _SHOWN), (_CONTROLS_NOTE,)
    relative = pd.concat(
        [words.loc[words["condition"].isin(PAPERS)].assign(measure=m) for m in ("rac", "rcc")]
    )
    names = relative["condition"] + " " + relative["measure"].str.upper() + " %"
    texts = relative["rac"].where(relative["measure"] == "rac", relative["rcc"])
    order = [f"{name} {measure} %" for name in PAPERS for measure in ("RAC", "RCC")]
    yield "Relative changes", _pivot(relative[lead], names, texts, order), (_RELATIVE_NOTE,)


def _pivot(
    leads: pd.DataFrame, names: pd.Series, texts: pd.Series, columns: Sequence[str]
) -> pd.DataFrame:
    """A row for each lead in order of appearance, and those columns that are among the names."""
    table = leads.assign(_name=names, _text=texts).pivot_table(
        index=list(leads), columns="_name", values="_text", aggfunc="last", fill_value=""
    )
    shown = [name for name in columns if name in table]
    rows = leads.drop_duplicates().merge(table[shown].reset_index(), on=list(leads))
    return rows.rename(columns=HEADS)


def _differences(
    words: pd.DataFrame,
    keys: Sequence[RepeatKey],
    lead: Sequence[str],
    differences: Sequence[Difference],
) -> list[Section]:
    """How methods differ in enhance minus degrade, and which are held against none."""
    lines = dict(zip(reversed(keys), reversed(words.to_dict("records")), strict=True))
    # Repeats without a condition in common have no line.
    shown = [d for d in differences if {d.key, d.against} <= lines.keys()]
    against = " or ".join(dict.fromkeys(lines[d.against]["method"] for d in shown))
    rows = [
        {
            **{HEADS.get(name, name): lines[d.key][name] for name in lead},
            "difference": f"{d.change.delta:+.1f} [{d.change.low:+.1f}, {d.change.high:+.1f}]",
            "p (Holm)": p_text(d.p_holm),
            "seeds": f"{len(d.seeds)} of {d.n_repeats}",
        }
        for d in sorted(shown, key=lambda d: d.key.top_k)
    ]
    title = f"Enhance minus degrade less that of {against}, points"
    sections = []
    if rows:
        sections.append(Section(title, pd.DataFrame(rows), (_AGAINST_NOTE.format(against),)))
    conditions = zip(keys, words["condition"], strict=True)
    swapped = [key for key, condition in conditions if condition == SWAPPED]
    names = ["{method} ({task}, K {K})".format(**lines[key]) for key in unpaired(swapped, shown)]
    if names:
        note = (
            f"Not held against {against or 'another method'}, since no run of it has the same "
            f"terms, seeds and docs: {', '.join(names)}. `--rank` says in what runs differ."
        )
        sections.append(Section("", None, (note,)))
    return sections


def seconds_section(seconds: Mapping[str, float]) -> list[Section]:
    """What stages took; nothing if that is not known."""
    rows = [{"stage": one_line(stage), "s": f"{taken:.1f}"} for stage, taken in seconds.items()]
    return [Section("Seconds", pd.DataFrame(rows), (_SECONDS_NOTE,))] if rows else []
