"""Summaries of conditions, made up for reports."""

from __future__ import annotations

import math

from neuronllm_eval.evaluation.condition_effects import ConditionSummary, Corrected
from neuronllm_eval.evaluation.stats.paired_delta import PairedDelta
from neuronllm_eval.evaluation.stats.significance import ControlRank, McNemar
from neuronllm_eval.interventions.conditions import UNMASKED as UNMASKED_NAME
from neuronllm_eval.interventions.conditions import ConditionName, only_operation

NO_CONTROLS = ControlRank(math.nan, math.nan, math.nan, 0, 0, math.nan)
CONTROLS = ControlRank(-0.26, -1.5, 2.04, 20, 0, 1 / 21)


def delta(change, low, high, *, unmasked=80.0, p_value=0.03, n_docs=30) -> PairedDelta:
    """Of 10 questions; p before any correction."""
    return PairedDelta(
        unmasked=unmasked,
        condition=unmasked + change,
        delta=change,
        low=low,
        high=high,
        p_value=p_value,
        n_docs=n_docs,
        n_questions=10,
    )


def summary(
    name, accuracy, *, controls=NO_CONTROLS, n_beyond=0, confidence=None, p_holm=0.04, rac=0.0
) -> ConditionSummary:
    """Of 3 neurons of each kind, unless the name says otherwise; one of two conditions tested."""
    parts = ConditionName.parse(name)
    own = {"suppress": 0.0, "enhance": 2.0}.get(only_operation(parts.condition))
    tested = parts.condition != UNMASKED_NAME
    return ConditionSummary(
        name=name,
        condition=parts.condition,
        top_k=parts.top_k or 3,
        scale=own if parts.scale is None else parts.scale,
        accuracy=accuracy,
        confidence=confidence or delta(-1.25, -2.0, -0.5, unmasked=60.0),
        rac=rac,
        rcc=-2.08,
        controls=controls if tested else None,
        n_beyond=n_beyond,
        mcnemar=McNemar(n_gained=1, n_lost=9, p_value=22 / 1024) if tested else None,
        corrected=Corrected(2, p_holm, 44 / 1024) if tested else None,
    )


UNMASKED = summary("unmasked", delta(0.0, 0.0, 0.0), confidence=delta(0, 0, 0))
