"""The leaderboard as people read it: which columns, in which words, with which legend. Pure.

Figures are rounded as in `report.md`. What is the same in every row is said once, above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from neuronllm_eval.comparison.comparability import ComparableSet
from neuronllm_eval.comparison.labels import directories, method_labels, model_labels, run_labels
from neuronllm_eval.comparison.leaderboard import Leaderboard, last_part
from neuronllm_eval.comparison.leaderboard_rows import BoardRun
from neuronllm_eval.comparison.neuron_overlap import RunsOverlap
from neuronllm_eval.formats.markdown import one_line
from neuronllm_eval.formats.sections import Section
from neuronllm_eval.interventions.conditions import UNMASKED, factor_text
from neuronllm_eval.reporting.wording import p_text

# Pairs of runs of a model that are shown, those that share most; json and csv have all.
MOST_PAIRS = 30
_NOTE = (
    "Neurons that two runs share, the Jaccard index (shared over those in either), and in brackets "
    "what is expected of random sets with as many neurons in each layer."
)
_HEADS = ("run", "other run", "good", "bad", "good in other's bad", "bad in other's good")


def overlap_sections(found: Sequence[RunsOverlap], runs: Sequence[BoardRun]) -> list[Section]:
    """A section for each model with several runs, the pairs that share most first."""
    labels = run_labels(runs)
    titles = model_labels([(run.model, run.model_hash, "") for run in runs])
    by_model: dict[str, dict[tuple[str, str], list[RunsOverlap]]] = {}
    for each in found:
        pairs = by_model.setdefault(each.model_hash, {})
        pairs.setdefault((each.run, each.other_run), []).append(each)
    sections = []
    for model, pairs in by_model.items():
        order = sorted(pairs, key=lambda pair: -sum(_likeness(each) for each in pairs[pair]))
        shown = [
            [labels[one], labels[other], *map(_overlap_cell, pairs[one, other])]
            for one, other in order[:MOST_PAIRS]
        ]
        n_left = len(order) - len(shown)
        left = (f"{n_left} more pairs, which share less; json has all, and csv with --overlaps.",)
        sections.append(
            Section(
                f"Neurons shared by runs of {titles[model]}",
                pd.DataFrame(shown, columns=list(_HEADS), dtype=object),
                (_NOTE, *(left if n_left else ())),
            )
        )
    return sections


def _likeness(each: RunsOverlap) -> float:
    return (each.jaccard or 0.0) if each.neurons == each.other_neurons else 0.0


def _overlap_cell(each: RunsOverlap) -> str:
    smaller = min(each.size, each.other_size)
    if not smaller:
        return ""
    return f"{each.shared} of {smaller}, {each.jaccard or 0:.2f} ({each.chance or 0:.2f})"


NOTE = (
    "Rank: within a task, a condition and a set, by the delta in the condition's direction. Delta "
    "and changes: points against the unmasked run; 95% interval and p paired, by question, p "
    "corrected for the run's conditions (a point's for its points too). Good/bad: neurons that "
    "there were, where these are fewer than K. Edited: what there was not to edit; a condition "
    "that edits nothing is not judged. Controls outdone: layer-matched random neurons under the "
    "same operation. Consistent: questions right under "
    "every order of the options; majority: whose most frequent answer is right; position bias: how "
    "far the letters said are from the right ones'."
)


def sections(
    board: Leaderboard, group_by: str, columns: Sequence[str] = (), *, short: bool = False
) -> list[Section]:
    """A section with the table of each group, and what explains them all.

    Args:
        board: the rows, in order.
        group_by: one of `leaderboard_choices.GROUPS`.
        columns: names of `HEADS`, which are shown in that order whatever they hold; all that tell
            something if empty.
        short: whether a page of print has to be wide enough for those that are not chosen.
    """
    words = _in_words(board)
    masked = words[words["condition"] != UNMASKED]
    telling = words if masked.empty else masked
    once_for_all = [name for name in _SAID_ONCE if name not in (group_by, *columns)]
    alike = [name for name in once_for_all if telling[name].nunique() == 1]
    if columns:
        heads = {name: HEADS[name] for name in columns}
    else:
        hidden = {group_by, *alike, *_needless(board, words)}
        heads = {name: head for name, head in HEADS.items() if name not in hidden}
        heads = {name: head for name, head in heads.items() if (words[name] != "").any()}
        heads = _shortened(heads, words) if short else heads
    said = ", ".join(f"{HEADS[name]} {telling[name].iloc[0]}" for name in alike)
    found = [Section("", None, (f"The same in all rows: {said}.",))] if said else []
    for title, rows in words.groupby(words[group_by], sort=False):
        unmasked = rows["condition"] == UNMASKED
        # No method has a part in it: runs that agree on it need one row.
        rows = rows.assign(**{name: rows[name].mask(unmasked, "") for name in ("method", "run")})
        shown = rows[list(heads)].rename(columns=heads)
        once = ~(shown.duplicated() & unmasked)
        found.append(Section(str(title), shown[once].reset_index(drop=True)))
    _, above = directories(list(board.frame["run"]))
    where = [f"Directories are below {one_line(above)}."] if above and "run" in heads else []
    return [*found, Section("", None, (NOTE, *where, *legend(board.sets)))]


def legend(sets: Sequence[ComparableSet]) -> list[str]:
    """In words, what parts the sets of each task that has several."""
    found = []
    for task in dict.fromkeys(each.task for each in sets):
        own = [each for each in sets if each.task == task]
        if len(own) > 1:
            first = own[0].terms
            parts = [
                f"a: {_runs(own[0])}, {first.n_questions} questions of the {first.split} split, "
                f"K {first.top_k}",
                *(f"{each.letter}: {_runs(each)}, {', '.join(each.differs)}" for each in own[1:]),
            ]
            words = "; ".join(map(_whole_line, parts)).rstrip(".")
            found.append(
                f"{one_line(task)} has results that cannot be compared with each other, by set. "
                f"{words}."
            )
    return found


def _runs(each: ComparableSet) -> str:
    return f"{each.n_runs} run{'s' if each.n_runs > 1 else ''}"


def _whole_line(text: str) -> str:
    return one_line(text, 10_000)


# Columns in order, and their heads.
HEADS = {
    "rank": "rank",
    "set": "set",
    "model": "model",
    "task": "task",
    "method": "method",
    "seed": "seed",
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
    "controls": "controls outdone",
    "consistent": "consistent %",
    "consistent_delta": "consistent change",
    "position_bias": "position bias %",
    "position_bias_delta": "position bias change",
    "majority": "majority %",
}
_SAID_ONCE = ("model", "task", "method", "seed", "top_k", "n_questions")


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


def _shortened(heads: dict[str, str], words: pd.DataFrame) -> dict[str, str]:
    kept = {name: head for name, head in _SHORT.items() if name in heads}
    names = ["set", "model", "task", "method", "seed", "run", "condition", "top_k"]
    if not words.duplicated(names).any():  # a condition has its factor but for points of sweeps
        kept.pop("scale", None)
    return kept


def _needless(board: Leaderboard, words: pd.DataFrame) -> set[str]:
    """Sets where each task has one, and directories where the rest tells the rows apart."""
    hidden = set()
    if all(each.letter == "a" for each in board.sets):
        hidden.add("set")
    names = ["set", "model", "task", "method", "seed", "condition", "top_k", "scale"]
    if not words[words["condition"] != UNMASKED].duplicated(names).any():
        hidden.add("run")
    return hidden


def _in_words(board: Leaderboard) -> pd.DataFrame:
    """All columns of `HEADS` as text; empty where there is nothing."""
    frame = board.frame
    below, _ = directories(list(frame["run"]))
    interval = [
        "" if pd.isna(low) else f"{low:+.1f} to {high:+.1f}"
        for low, high in zip(frame["low"], frame["high"], strict=True)
    ]
    return pd.DataFrame(
        {
            "rank": _of_so_many(frame["rank"], frame["n_ranked"].where(frame["n_ranked"] > 1)),
            "set": _cells(frame["set"], str),
            "model": _models(frame),
            "task": _cells(frame["task"], one_line),
            "method": method_labels(frame),
            "seed": _cells(frame["seed"], str),
            "run": [below[path] for path in frame["run"]],
            "condition": _cells(frame["condition"], str),
            "top_k": _cells(frame["top_k"], str),
            "found": _fewer(frame),
            "scale": _cells(frame["scale"], factor_text),
            "n_questions": _cells(frame["n_questions"], str),
            "accuracy": _cells(frame["accuracy"], _level),
            "note": _cells(frame["note"], str),
            "delta": _cells(frame["delta"], _points),
            "interval": interval,
            "p_holm": _cells(frame["p_holm"], p_text),
            "controls": _of_so_many(frame["controls_outdone"], frame["n_controls"]),
            "consistent": _cells(frame["consistent"], _level),
            "consistent_delta": _cells(frame["consistent_delta"], _points),
            "position_bias": _cells(frame["position_bias"], _level),
            "position_bias_delta": _cells(frame["position_bias_delta"], _points),
            "majority": _cells(frame["majority"], _level),
        },
        index=frame.index,
        dtype=object,
    )


def _cells(values: pd.Series, text: Callable[..., str]) -> list[str]:
    return ["" if pd.isna(value) else text(value) for value in values]


def _fewer(frame: pd.DataFrame) -> list[str]:
    """How many good and bad neurons there were, where these are not as many as asked for."""
    rows = zip(frame["top_k"], frame["n_good"], frame["n_bad"], strict=True)
    return [
        "" if pd.isna(top_k) or (n_good, n_bad) == (top_k, top_k) else f"{n_good}/{n_bad}"
        for top_k, n_good, n_bad in rows
    ]


def _level(value: float) -> str:
    return f"{value:.1f}"


def _points(value: float) -> str:
    return f"{value:+.1f}"


def _of_so_many(values: pd.Series, totals: pd.Series) -> list[str]:
    pairs = zip(values, totals, strict=True)
    return ["" if pd.isna(one) or pd.isna(of) else f"{one} of {of}" for one, of in pairs]


def _models(frame: pd.DataFrame) -> list[str]:
    columns = (frame["model"], frame["model_hash"], frame["dtype"])
    labels = model_labels(list(zip(*columns, strict=True)))
    return [labels[each] for each in frame["model_hash"]]


def unfinished(runs: Sequence[BoardRun]) -> list[Section]:
    """Runs that have no results yet, and what they need; nothing if all have."""
    names = {"validate": "Not validated yet", "report": "Validated, but without summary.json"}
    found = []
    for lacks, title in names.items():
        own = [run for run in runs if run.lacks == lacks]
        if own:
            rows = [
                [one_line(last_part(run.model)), one_line(run.task), one_line(run.method),
                 one_line(f"neuronllm-eval {lacks} {run.path}", 1000)]
                for run in own
            ]  # fmt: skip
            heads = ["model", "task", "method", "goes on with"]
            found.append(Section(title, pd.DataFrame(rows, columns=heads, dtype=object)))
    return found
