"""Sentences for people: effects, selections and excluded docs. Pure.

Templates escape them, all but words in backticks; so texts from data have none (`data_text`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuronllm_eval.attribution.methods import METHODS
from neuronllm_eval.attribution.quadrature import parse_layer_rules
from neuronllm_eval.engine.interface import gold_probability
from neuronllm_eval.evaluation.condition_effects import ConditionSummary
from neuronllm_eval.evaluation.robust_effects import COLLAPSED
from neuronllm_eval.evaluation.stats.paired_delta import MeanChange
from neuronllm_eval.evaluation.stats.significance import ALPHA, ChanceTest, SplitHalf
from neuronllm_eval.formats.markdown import data_text
from neuronllm_eval.interventions.conditions import (
    CONDITION_OPERATIONS,
    EXPECTED_SIGN,
    FEWEST_CONTROLS,
    OPERATIONS,
    UNMASKED,
    factor_text,
)
from neuronllm_eval.neurons.neuron_set import Provenance

# What follows where a model is at chance.
# Share of a layer's change that its completeness gap may have before log and report name it.
LARGE_GAP = 0.1
AT_CHANCE = (
    "neurons of a model at chance are about the options' position or form, not about the task"
)

# A condition moves all answers to one that is so many points more frequent than usual; and how many
# conditions a sentence names.
_RISE, _MOST_NAMED = 10.0, 6


# Effects ------------------------------------------------------------------------------------------


def tested(summaries: Sequence[ConditionSummary]) -> list[ConditionSummary]:
    """The evaluated conditions that are not points; the points if there is nothing else."""
    evaluated = [summary for summary in summaries if summary.is_evaluated]
    return [summary for summary in evaluated if not summary.is_point] or evaluated


def main_condition(summaries: Sequence[ConditionSummary]) -> str | None:
    """The condition of the headline; None before validation."""
    names = [summary.name for summary in tested(summaries)]
    return "suppress_good" if "suppress_good" in names else next(iter(names), None)


def sentence(n_good: int, n_bad: int, summary: ConditionSummary) -> str:
    """The effect of a condition on accuracy, beside its random controls.

    An effect is clear if its interval excludes 0 and its p is below 0.05 after Holm's correction.

    Args:
        n_good: selected good neurons.
        n_bad: selected bad neurons.
        summary: any condition or point but `unmasked`.
    """
    accuracy = summary.accuracy
    p_value = corrected_p(summary)
    operation = _operation(n_good, n_bad, summary)
    if not (accuracy.low * accuracy.high > 0 and p_value < ALPHA):
        return (
            f"{operation} has no clear effect on accuracy: "
            f"{accuracy.delta:+.1f} points (95% {accuracy.low:+.1f} to {accuracy.high:+.1f}, "
            f"Holm p {p_value:.2g}){_beside_controls(summary)}."
        )
    low, high = sorted((abs(accuracy.low), abs(accuracy.high)))
    size = f"by {abs(accuracy.delta):.1f} points (95% {low:.1f} to {high:.1f})"
    verb = "raises" if accuracy.delta > 0 else "lowers"
    if accuracy.delta * EXPECTED_SIGN[summary.condition] > 0:
        return f"{operation} {verb} accuracy {size}{_more_than(summary)}."
    return f"{operation} {verb} accuracy, unexpectedly, {size}{_beside_controls(summary)}."


def _operation(n_good: int, n_bad: int, summary: ConditionSummary) -> str:
    """The start of a sentence: the operation and its neurons."""
    parts = []
    sets = {"good": n_good, "bad": n_bad}
    operations = CONDITION_OPERATIONS[summary.condition]
    for operation, (name, size) in zip(operations, sets.items(), strict=True):
        if operation is not None and size:
            count = min(size, summary.top_k or size) if summary.is_point else size
            parts.append(f"{OPERATIONS[operation].verb} {count} {name}")
    text = f"{' and '.join(parts)} neurons"
    if summary.is_point and summary.scale is not None:
        text += f" (factor {factor_text(summary.scale)})"
    return text[0].upper() + text[1:]


def _beside_controls(summary: ConditionSummary) -> str:
    """Where accuracy lies among the random controls, whatever the test says of the change."""
    if not summary.n_controls:
        return ""
    side = "higher" if EXPECTED_SIGN[summary.condition] > 0 else "lower"
    but = "though" if summary.n_beyond == summary.n_controls else "and"
    return f", {but} accuracy is {side} than under {_exceeded(summary)} random controls"


def _more_than(summary: ConditionSummary) -> str:
    if not summary.n_controls:
        return ""
    few = f" (a rank needs {FEWEST_CONTROLS})" if summary.n_controls < FEWEST_CONTROLS else ""
    return f", more than {_exceeded(summary)} random controls{few}"


def _exceeded(summary: ConditionSummary) -> str:
    n_beyond, n_controls = summary.n_beyond, summary.n_controls
    return f"all {n_controls}" if n_beyond == n_controls else f"{n_beyond} of {n_controls}"


def chance_sentence(test: ChanceTest) -> str:
    """What to know of neurons of a model at chance; empty of one that is clearly above it."""
    if not test.is_at_chance:
        return ""
    return (
        f"The unmasked model is not clearly above chance on this task ({chance_figures(test)}): "
        f"{AT_CHANCE}."
    )


def collapse_sentence(
    names: Sequence[str],
    gold: Sequence[float],
    predicted: Mapping[str, Sequence[float]],
    unit: str = "question",
) -> str:
    """Which conditions leave one answer to nearly all docs; empty if none does.

    Not where that answer is about as frequent in the unmasked run, or as gold option.

    Args:
        names: of the options; texts of the data.
        gold: percent of the docs with each as the gold option.
        predicted: condition -> the same of the model's answers.
        unit: what a doc is called.
    """
    found: dict[str, list[str]] = {}  # what is predicted -> conditions
    n_found = 0
    for name, shares in predicted.items():
        share, option = max((share, option) for option, share in enumerate(shares))
        usual = max(gold[option], predicted[UNMASKED][option])
        if share < COLLAPSED or share < usual + _RISE:
            continue
        n_found += 1
        if n_found <= _MOST_NAMED:
            rounded = f"{share:.0f}" if share < 99.5 else f"{share:.1f}"
            amount = f"every {unit}" if share == 100 else f"{rounded}% of the {unit}s"
            found.setdefault(f"`{data_text(names[option])}` for {amount}", []).append(name)
    if not found:
        return ""
    clauses = [f"{answer} under {' and '.join(under)}" for answer, under in found.items()]
    if n_found > _MOST_NAMED:
        clauses.append(f"one answer for nearly every {unit} under {n_found - _MOST_NAMED} more")
    return (
        f"The edited model predicts {', '.join(clauses)}: such an edit moves an answer, whatever "
        "the question."
    )


def chance_figures(test: ChanceTest) -> str:
    """Accuracy beside chance, and the test's p."""
    return (
        f"accuracy {test.accuracy:.1%}, chance {test.chance:.1%}, one-sided p {test.p_value:.2g} "
        f"over {test.n_questions} questions"
    )


def selection_chance_sentence(test: ChanceTest) -> str:
    """Unmasked accuracy on the selection questions against chance."""
    clearly = ", not clearly above it" if test.is_at_chance else ""
    return (
        f"Unmasked accuracy on the selection questions: {test.accuracy:.1%}, chance "
        f"{test.chance:.1%}{clearly}."
    )


def chance_text(chance: float | None) -> str:
    """What follows an accuracy; empty for summaries of earlier versions.

    Args:
        chance: percent.
    """
    return "" if chance is None else f" (chance {chance:.1f}%)"


def chance_sentence_of_deltas(
    summaries: Sequence[ConditionSummary], *, is_drawn: bool = False
) -> str:
    """Where chance is among deltas, after other sentences; empty where it is not known.

    Args:
        summaries: of the same docs.
        is_drawn: whether it follows a figure, which has a line there.
    """
    distance = chance_distance(summaries)
    if distance is None:
        return ""
    accuracy, chance = summaries[0].accuracy, summaries[0].chance
    line = ", a dashed line where that is in sight" if is_drawn else ""
    return (
        f" Unmasked accuracy is {accuracy.unmasked:.1f}%, chance (guessing) {chance:.1f}%: "
        f"{distance:+.1f} points{line}."
    )


def chance_distance(summaries: Sequence[ConditionSummary]) -> float | None:
    """Chance as a delta, percentage points from the unmasked accuracy; None where unknown."""
    chance = summaries[0].chance if summaries else None
    return None if chance is None else chance - summaries[0].accuracy.unmasked


def corrected_p(summary: ConditionSummary) -> float:
    """p of the accuracy delta after Holm's correction; 1 for the unmasked run."""
    return 1.0 if summary.corrected is None else summary.corrected.p_value


def interval_text(change: MeanChange) -> str:
    """A change in points with its 95% interval."""
    return f"{change.delta:+.1f} ({change.low:+.1f} to {change.high:+.1f})"


def p_text(p_value: float) -> str:
    """A p-value for a table."""
    return f"{p_value:.4f}" if p_value >= 1e-3 else "<0.001"


def cost_text(value: float) -> str:
    """A KL divergence or a perplexity: three digits, but at most three behind the point."""
    if not math.isfinite(value):
        return "not finite"
    if 0 < value < 1e-3:
        return "<0.001"
    if value < 1:
        return f"{value:.3f}" if value else "0"
    if value < 999.5:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


# Selection ----------------------------------------------------------------------------------------


def positions_sentence(selected_at: str, applied_at: str) -> str:
    """The token positions of selection and of the conditions."""
    return (
        f"Neurons selected at {selected_at} positions, conditions applied at {applied_at} positions"
    )


def selection_sentence(provenance: Provenance) -> str:
    """The questions and the method that selected the neurons."""
    return (
        f"Selected on {provenance.n_questions} questions ({provenance.n_prompts} prompts) of the "
        f"{data_text(provenance.split)} split of {data_text(provenance.task)}; "
        f"{data_text(provenance.method)}, {data_text(nodes_text(provenance))}, "
        f"{data_text(provenance.engine)} engine; "
        f"{gap_text(provenance)}."
    )


def nodes_text(provenance: Provenance) -> str:
    """The number of nodes of the path integral, and their rule."""
    counts = _nodes_of_layers(provenance)
    if not counts:
        plural = "s" if provenance.n_steps != 1 else ""
        return f"{provenance.n_steps} node{plural} of {provenance.quadrature}"
    if len(set(counts)) == 1:
        return f"{counts[0]} nodes of graded gauss_lobatto in each layer"
    mean = sum(counts) / len(counts)
    return (
        f"{min(counts)} to {max(counts)} nodes of graded gauss_lobatto by layer, {mean:.1f} on "
        "average"
    )


def _nodes_of_layers(provenance: Provenance) -> list[int]:
    """By layer; empty if all have the same."""
    return [rule.n_steps for rule in parse_layer_rules(provenance.layer_nodes)]


def large_gaps(provenance: Provenance) -> str:
    """Layers whose completeness gap exceeds `LARGE_GAP`, with their nodes; empty if none does."""
    shares = provenance.completeness_gap_layers
    counts = _nodes_of_layers(provenance) or [provenance.n_steps] * len(shares)
    layers = [
        f"{layer} ({n_nodes} node{'s' if n_nodes != 1 else ''}, {share:.0%})"
        for layer, (n_nodes, share) in enumerate(zip(counts, shares, strict=False))
        if share > LARGE_GAP
    ]
    return f"layers whose gap is over {LARGE_GAP:.0%}: {', '.join(layers)}" if layers else ""


def gap_text(provenance: Provenance) -> str:
    """The difference between the sum of attributions and the change they explain."""
    figures = gap_figures(provenance)
    if figures is None:
        return "completeness gap not measured"
    largest, mean, share = figures
    return (
        f"completeness gap at most {largest}{unit(provenance.method)}, {mean} on average, {share} "
        "of the total change"
    )


def gap_figures(provenance: Provenance) -> tuple[str, str, str] | None:
    """The largest and the mean gap in `unit`, and its share; None if it was not measured."""
    largest, mean = provenance.completeness_gap_max, provenance.completeness_gap_mean
    share = provenance.completeness_gap_share
    if largest is None or mean is None or share is None:
        return None
    return f"{largest:.2g}", f"{mean:.2g}", f"{share:.2%}"


def unit(method: str) -> str:
    """Unit of a method's attributions; empty for probabilities."""
    quantity = getattr(METHODS.get(method), "quantity", None)  # a user's method may be unknown here
    return "" if quantity is not None and quantity.target is gold_probability else " log-nats"


def stability_sentence(stability: SplitHalf) -> str:
    """Agreement of two halves of the questions on the scores."""
    overlaps = {"good": stability.top_k_overlap, "bad": stability.bottom_k_overlap}
    shares = [
        f"{share:.0%} of the top {name} neurons"
        for name, share in overlaps.items()
        if not math.isnan(share)
    ]
    both = f"; {' and '.join(shares)} are in both halves" if shares else ""
    return f"Split-half rank correlation of the scores {stability.rank_correlation:.2f}{both}."


def label_sentence(n_label: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    """How many neurons of each set are label neurons; empty without neurons.

    Args:
        n_label: set -> its label neurons (`neurons.label_parts`).
        sizes: set -> its neurons.
    """
    counts = [f"{n_label[name]} of {size} {name}" for name, size in sizes.items() if size]
    return (
        f"{' and '.join(counts)} neurons are label neurons (values that vary more between gold "
        "options than they amount to on average)."
        if counts
        else ""
    )


def docs_sentence(role: str, counts: Mapping[str, Any]) -> str:
    """Docs that were excluded or changed; empty if there are none.

    Args:
        role: `selection` or `validation`.
        counts: `data`, the counts of reading (`aqua.cleaning.DocCounts`), and `prompts`, those of
            encoding (`harness.tokenize.QuestionSet.counts`), where there are any.
    """
    data, prompts = counts.get("data", {}), counts.get("prompts", {})
    reasons = (
        ("not sampled (max_selection)", data.get("not_drawn")),
        ("excluded as duplicates of the other split", data.get("duplicates_dropped")),
        ("reserved for demonstrations", data.get("demonstrations")),
        ("with options removed", data.get("options_cut")),
        ("with distractors added", data.get("distractors_added")),
        ("left to the other half, as one split serves as both", data.get("other_half")),
    )
    parts = [f"{count} {reason}" for reason, count in reasons if count]
    parts += [
        f"{count} skipped ({data_text(reason)})"
        for reason, count in data.get("skipped", {}).items()
    ]
    if n_short := prompts.get("demonstrations_dropped"):
        parts.append(f"{n_short} prompts with fewer demonstrations (context length)")
    if n_excluded := counts.get("set_aside"):
        parts.append(f"{n_excluded} questions excluded (NaN or infinite values)")
    parts += _skipped(prompts, "prompts skipped")
    return f"Docs of the {role} split: {', '.join(parts)}." if parts else ""


def _skipped(counts: Mapping[str, Any], what: str) -> list[str]:
    reasons = counts.get("skipped", {})
    return [f"{count} {what} ({data_text(reason)})" for reason, count in reasons.items()]
