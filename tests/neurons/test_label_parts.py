"""Task part, label part and label index, by hand; prompts counted by gold option."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.explain.explanation import letter_bias
from neuronllm_eval.neurons.label_parts import gold_counts, label_parts

HERE = Path("questions.jsonl")


def test_parts_by_hand():
    # Of three options the second is never gold; 2 prompts have the first, 4 the third. Means:
    # 3 and 3; 3 and -3; 3 and 1 (m 2, sd 1); -1 and 3 (m 1, sd 2); 0 and 0.
    sums = np.array([[6.0, 6, 6, -2, 0], [9.0, 9, 9, 9, 9], [12.0, -12, 4, 12, 0]])
    parts = label_parts(sums, (2, 0, 4))
    assert parts is not None
    assert parts.task == pytest.approx([3, 0, 2, 1, 0])
    assert parts.label == pytest.approx([0, 3, 1, 2, 0])
    assert parts.index == pytest.approx([1, -1, 3 / 5, -3 / 5, np.nan], nan_ok=True)
    assert parts.is_label.tolist() == [False, True, False, True, False]


def test_one_gold_option_defines_none():
    assert label_parts(np.ones((3, 2)), (0, 5, 0)) is None


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_the_index_is_the_letter_bias_on_another_scale(size):
    means = np.random.default_rng(0).normal(size=(4, 6)) * size
    parts = label_parts(means * 3, (3, 3, 3, 3))
    assert parts is not None
    assert parts.index == pytest.approx([1 - 2 * letter_bias(column) for column in means.T])
    assert parts.task == pytest.approx(means.mean(0), rel=1e-9, abs=0)


def test_gold_options_are_counted_over_all_prompts():
    assert gold_counts([0, 1, 2, 2], 4, 4, HERE).tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("gold", [[1], [1, 4], [-1, 1], [1, 1, 1]])
def test_lines_of_another_run_are_refused(gold):
    with pytest.raises(ArtifactError, match=r"the scores 2 prompts with 4 letters"):
        gold_counts(gold, 4, 2, HERE)
