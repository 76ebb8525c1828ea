"""Effects that an edit cannot have by moving all answers to one option. Pure.

A condition that adds a constant to one option changes accuracy, whatever the questions are. So
beside it stand, for every condition and its random controls:

1. Calibrated accuracy: after each option's mean log-probability under the condition is removed
   (`doc_table.calibrated_scores`). A constant makes no difference.
2. Balanced accuracy: the mean over gold labels. One answer to all docs has 100 / labels percent.
3. Accuracy by gold label.
4. The share of the most frequent answer; from `COLLAPSED` on it is a collapse.
5. Option mass: the total probability of the options. Accuracy and confidence compare options with
   each other; an edit that breaks the model takes probability from all of them.

Gold labels are indices of options: they mean the same in all docs where the options are letters or
the same texts; elsewhere they are positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.stats.balanced_delta import balanced_delta, balancing_weights
from neuronllm_eval.evaluation.stats.paired_delta import (
    FloatArray,
    PairedDelta,
    paired_delta,
    points_between,
)
from neuronllm_eval.evaluation.stats.significance import ControlRank, random_control_rank
from neuronllm_eval.formats.typed_files import NumberOrNaN
from neuronllm_eval.interventions.conditions import UNMASKED

# Percent of the docs with the same answer from which a condition has collapsed.
COLLAPSED = 90.0


@dataclass(frozen=True)
class ControlledDelta(PairedDelta):
    """A paired delta beside those of the random controls.

    Attributes:
        controls: deltas of the random controls; None for the unmasked run.
        p_holm: p after Holm's correction for the tests that `accuracy` is corrected for; nan for
            the unmasked run.
    """

    controls: ControlRank | None = None
    p_holm: NumberOrNaN = math.nan


@dataclass(frozen=True)
class OptionMass:
    """Total probability of a doc's options, over the whole vocabulary: its mean over docs.

    Of options of several tokens it is that of the token sequences, so that an option that is the
    beginning of another has the other's too.

    Attributes:
        mean: 0 to 1.
        relative: percent of the unmasked run's.
        controls_mean: mean of the random controls' `relative`; nan without controls.
        controls_low: the smallest.
        controls_high: the largest.
    """

    mean: float
    relative: NumberOrNaN
    controls_mean: NumberOrNaN
    controls_low: NumberOrNaN
    controls_high: NumberOrNaN


@dataclass(frozen=True)
class RobustEffects:
    """What one condition did, free of its moving answers; fields of `ConditionSummary`.

    Attributes:
        chance: percent, the accuracy of guessing: mean of 1 / number of options over the docs.
        calibrated: accuracy after batch calibration, percent and percentage points.
        balanced: accuracy as the mean over gold labels, percent and percentage points.
        by_gold: [options] accuracy on the docs with this gold option, percent; nan for options
            that are gold in none.
        top_answer: percent of the docs with the most frequent answer, by its index.
        collapsed: whether that is `COLLAPSED` or more.
        option_mass: total probability of the options.
    """

    chance: float
    calibrated: ControlledDelta
    balanced: ControlledDelta
    by_gold: tuple[NumberOrNaN, ...]
    top_answer: float
    collapsed: bool
    option_mass: OptionMass


def robust_effects(
    table: DocTable,
    name: str,
    controls: Sequence[str],
    sign: int,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> RobustEffects:
    """The figures of one condition or point.

    Args:
        table: answers of the docs.
        name: of the condition.
        controls: names of its random controls.
        sign: 1 or -1, the direction in which the condition is expected to move accuracy; 0 for the
            unmasked run, which has no controls.
        n_resamples: draws of the bootstrap and of the permutation test.
        seed: of the draws.
    """
    correct, calibrated = table.correct, table.calibrated
    weights = balancing_weights(table.gold)
    of_calibrated = paired_delta(
        calibrated[UNMASKED],
        calibrated[name],
        table.question_index,
        n_resamples=n_resamples,
        seed=seed,
    )
    of_balanced = balanced_delta(
        correct[UNMASKED],
        correct[name],
        table.question_index,
        table.gold,
        n_resamples=n_resamples,
        seed=seed,
    )
    top_answer = 100 * float(np.bincount(table.predicted[name]).max() / len(table.doc_ids))
    return RobustEffects(
        chance=100 * float(np.mean(1 / table.n_options)),
        calibrated=_beside(
            of_calibrated,
            [points_between(calibrated[UNMASKED], calibrated[other]) for other in controls],
            sign,
        ),
        balanced=_beside(
            of_balanced,
            [points_between(correct[UNMASKED], correct[other], weights) for other in controls],
            sign,
        ),
        by_gold=accuracy_by_label(correct[name], table.gold, int(table.n_options.max())),
        top_answer=top_answer,
        collapsed=top_answer >= COLLAPSED,
        option_mass=_option_mass(table, name, controls),
    )


def _beside(change: PairedDelta, controls: Sequence[float], sign: int) -> ControlledDelta:
    rank = random_control_rank(change.delta, controls, sign) if sign else None
    return ControlledDelta(**vars(change), controls=rank)


def accuracy_by_label(correct: FloatArray, labels: NDArray[np.int64], n: int) -> tuple[float, ...]:
    """[n] accuracy on the docs of each label, percent; nan for labels without docs.

    Args:
        correct: [docs], 1 if correct, else 0.
        labels: [docs], 0 to n - 1.
        n: number of labels.
    """
    counts = np.bincount(labels, minlength=n)
    sums = np.bincount(labels, correct, n)
    return tuple(
        100.0 * float(total) / int(count) if count else math.nan
        for total, count in zip(sums, counts, strict=True)
    )


def _option_mass(table: DocTable, name: str, controls: Sequence[str]) -> OptionMass:
    means = {key: float(table.option_mass[key].mean()) for key in (UNMASKED, name, *controls)}
    unmasked = means[UNMASKED]
    relative = [
        100.0 * means[key] / unmasked if unmasked else math.nan for key in (name, *controls)
    ]
    own, of_controls = relative[0], relative[1:]
    if not of_controls:
        return OptionMass(means[name], own, math.nan, math.nan, math.nan)
    mean = math.fsum(of_controls) / len(of_controls)
    return OptionMass(means[name], own, mean, min(of_controls), max(of_controls))
