"""`comparison.md`, and what the console shows of a comparison. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from neuronllm_eval.comparison import Comparison, against_text, unpaired
from neuronllm_eval.comparison_tables import (
    controls_table,
    delta_table,
    difference_table,
    edited_table,
    overview,
    p_table,
    relative_table,
)
from neuronllm_eval.markdown_text import escaped, markdown_table

_TABLE_NOTE = (
    "Brackets: 95% interval of that cell alone, paired, by question. K: neurons of each kind that "
    "were asked for; good, bad: that there were. Runs: repeats with other seeds, which are pooled; "
    "a question that several of them ask is one. A condition without neurons to edit is not "
    "judged; good only: of the two kinds that it edits there was one. comparison.json has each "
    "run by itself."
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


def comparison_text(found: Comparison, seconds: Mapping[str, float]) -> str:
    """All tables, with how to read them.

    Args:
        found: what `comparison.compare` gives.
        seconds: by stage, what it took.
    """
    parts = [
        "## Accuracy under each condition, points against unmasked",
        delta_table(found),
        _TABLE_NOTE,
        "## Neurons that each condition edits",
        edited_table(found),
        "## Tests of these changes: p, McNemar's p",
        p_table(found),
        _TESTS_NOTE,
    ]
    if places := controls_table(found):
        parts += ["## Place among random controls", places, _CONTROLS_NOTE]
    parts += [
        "## Enhance minus degrade, points",
        overview(found),
    ]
    against = escaped(against_text(found))
    if against:
        parts += [
            f"## Enhance minus degrade less that of {against}, points",
            difference_table(found),
            "On the same questions and seeds, by question; p: of the signs of the questions' "
            f"differences, corrected (Holm) for all methods held against {against} at the same K, "
            "model and task. The interval is of that cell alone, so where the two disagree, go by "
            "p.",
        ]
    if left := unpaired(found):
        parts.append(
            f"Not held against {against or 'another method'}, since no run of it has the same "
            f"terms, seeds and docs: {escaped(', '.join(left))}. `neuronllm-eval leaderboard` says "
            "in what runs differ."
        )
    parts += ["## Relative changes", relative_table(found), _RELATIVE_NOTE]
    if seconds:
        times = [[escaped(stage), f"{taken:.1f}"] for stage, taken in seconds.items()]
        parts += ["## Seconds", markdown_table(["stage", "s"], times), _SECONDS_NOTE]
    return "\n\n".join(parts) + "\n"
