"""Running sums over questions, from which a method's scores are computed.

They are 64-bit fixed-point numbers, so that the order of adding cannot change a bit of the result,
and their size does not depend on the number of questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronllm_eval.errors import ArtifactError, DocError
from neuronllm_eval.runtime.checkpoint import Tally

# One unit of the sums is 2**-40 log-nats; sums up to 2**21 log-nats fit.
FIXED_POINT = 2.0**40
EXTRA_POINT = 2.0**34  # of what else a method sums up: squares of up to 10**8 in all
ACTIVATION_POINT = 2.0**24  # of sums of activations: of thousands, over millions of prompts
_MOST_UNITS = 2.0**61  # a few processes' sums still fit into 63 bits together
_ARRAYS = (
    "group_sums",
    "extra_sums",
    "letter_sums",
    "good_count",
    "bad_count",
    "group_count",
    "activation_sum",
    "layer_gaps",
    "layer_changes",
)
_COUNTS = ("n_gaps", "n_questions", "n_prompts")


@dataclass
class ScoreSums:
    """Sums over questions, all int64, so adding is exact in any order.

    Even and odd questions are summed up separately, for the split-half statistics, and so are the
    groups into which a method splits prompts.

    Attributes:
        group_sums: [groups, 2, layers, neurons] of fixed-point numbers.
        extra_sums: [extras, groups, 2, layers, neurons] of what else a method sums up, in
            units of `EXTRA_POINT`.
        letter_sums: [letters, layers, neurons] of fixed-point numbers, by gold letter.
        good_count: [layers, neurons] questions that put the neuron in G_e.
        bad_count: [layers, neurons] questions that put it in B_e.
        group_count: [groups, 2] prompts that were added.
        activation_sum: [layers, neurons] of |activation|, fixed-point numbers of their own.
        layer_gaps: [layers] of the completeness gaps, fixed-point numbers.
        layer_changes: [layers] of |F(h_l) - F(0)|, fixed-point numbers.
        unit: how many units of the sums are 1.
        questions: digest of the questions that are summed over.
        gap_max: the largest completeness gap, in units of the target.
        n_gaps: gaps that were added, one for each prompt and layer.
        bound: what no sum can exceed, in units, after all that was added here.
    """

    group_sums: NDArray[np.int64]
    extra_sums: NDArray[np.int64]
    letter_sums: NDArray[np.int64]
    good_count: NDArray[np.int64]
    bad_count: NDArray[np.int64]
    group_count: NDArray[np.int64]
    activation_sum: NDArray[np.int64]
    layer_gaps: NDArray[np.int64]
    layer_changes: NDArray[np.int64]
    unit: float = FIXED_POINT
    questions: str = ""
    gap_max: float = 0.0
    n_gaps: int = 0
    n_questions: int = 0
    n_prompts: int = 0
    bound: float = 0.0

    @classmethod
    def zeros(
        cls,
        shape: tuple[int, int],
        n_letters: int,
        n_groups: int = 1,
        unit: float = FIXED_POINT,
        questions: str = "",
        n_extras: int = 0,
    ) -> ScoreSums:
        """Empty sums for a model of `shape` [layers, neurons]."""
        shapes: dict[str, tuple[int, ...]] = {
            "group_sums": (n_groups, 2, *shape),
            "extra_sums": (n_extras, n_groups, 2, *shape),
            "letter_sums": (n_letters, *shape),
            "good_count": shape,
            "bad_count": shape,
            "group_count": (n_groups, 2),
            "activation_sum": shape,
            "layer_gaps": shape[:1],
            "layer_changes": shape[:1],
        }
        arrays: dict[str, Any] = {
            name: np.zeros(size, dtype=np.int64) for name, size in shapes.items()
        }
        return cls(**arrays, unit=unit, questions=questions)

    def fixed(self, values: Tensor, unit: float | None = None) -> NDArray[np.int64]:
        """Values as fixed-point numbers, of the sums' unit if not given another.

        Raises:
            DocError: these and all before might add up to more than 64 bits hold.
        """
        unit = unit or self.unit
        self.bound += float(values.abs().max()) * unit + 1  # with rounding
        if not self.bound < _MOST_UNITS:
            raise DocError(
                f"scores of up to {float(values.abs().max()):.3g} add up to too much",
                expected=f"less than {_MOST_UNITS / self.unit:.3g} in all",
                remedy="use fewer questions, or a method of coarser `unit` (docs/extending.md)",
            )
        return _units(values, unit)

    def floats(self, sums: NDArray[np.int64], unit: float | None = None) -> NDArray[np.float64]:
        """Fixed-point numbers of `fixed` as floats."""
        return sums / (unit or self.unit)

    @property
    def half_sums(self) -> NDArray[np.int64]:
        """[2, layers, neurons] over even and over odd questions, all groups together."""
        return self.group_sums.sum(0)

    def add_activations(self, activations: Tensor) -> None:
        """Add a prompt's |activations|, [layers, neurons].

        Raises:
            DocError: the sums might not fit into 64 bits.
        """
        sizes = activations.abs()
        if float(sizes.max()) * ACTIVATION_POINT + int(self.activation_sum.max()) > _MOST_UNITS:
            raise DocError(
                f"activations of up to {float(sizes.max()):.3g} add up to too much",
                expected=f"less than {_MOST_UNITS / ACTIVATION_POINT:.3g} in all",
                remedy="use fewer questions",
            )
        self.activation_sum += _units(sizes, ACTIVATION_POINT)

    @property
    def activation_mean(self) -> NDArray[np.float64]:
        """[layers, neurons] mean |activation| over prompts."""
        return self.activation_sum / ACTIVATION_POINT / max(1, self.n_prompts)

    def add_gaps(self, gaps: Tensor, changes: Tensor) -> None:
        """Add a prompt's completeness gaps.

        Args:
            gaps: [layers] in units of the target.
            changes: [layers] F(h_l) - F(0).
        """
        self.gap_max = max(self.gap_max, float(gaps.max()))
        self.layer_gaps += _units(gaps, FIXED_POINT)
        self.layer_changes += _units(changes.abs(), FIXED_POINT)
        self.n_gaps += gaps.numel()

    def tally(self, prefix: str = "") -> Tally:
        """What is added up over processes; the largest gap is in the questions' records."""
        return Tally(
            {prefix + name: getattr(self, name) for name in _ARRAYS},
            {prefix + name: getattr(self, name) for name in _COUNTS},
        )

    def of(self, tally: Tally, gap_max: float, prefix: str = "") -> ScoreSums:
        """The sums of all processes, for the same model and questions as these.

        Args:
            tally: what the processes added up.
            gap_max: the largest of the questions' gaps.
            prefix: of the names in the tally.

        Raises:
            ArtifactError: the sums are of another shape.
        """
        values: dict[str, Any] = {name: tally.counts[prefix + name] for name in _COUNTS}
        for name in _ARRAYS:
            array, expected = tally.arrays.get(prefix + name), getattr(self, name)
            if array is None or (array.shape, array.dtype) != (expected.shape, expected.dtype):
                raise ArtifactError(
                    f"the checkpoint's {prefix}{name} is {None if array is None else array.shape}",
                    expected=f"integers of shape {expected.shape}",
                    remedy="pass --overwrite to restart",
                )
            values[name] = array
        return ScoreSums(**values, unit=self.unit, questions=self.questions, gap_max=gap_max)

    @property
    def gap_mean(self) -> float:
        """Mean completeness gap over prompts and layers, in units of the target."""
        return int(self.layer_gaps.sum()) / FIXED_POINT / max(1, self.n_gaps)

    @property
    def gap_share(self) -> float:
        """Sum of the gaps over that of |F(h_l) - F(0)|: the share of the change that is missed."""
        return int(self.layer_gaps.sum()) / max(1, int(self.layer_changes.sum()))

    @property
    def layer_gap_shares(self) -> tuple[float, ...]:
        """[layers] the same of each layer."""
        shares = self.layer_gaps / np.maximum(1, self.layer_changes)
        return tuple(float(share) for share in shares)


def _units(values: Tensor, unit: float) -> NDArray[np.int64]:
    return torch.round(values.cpu().double() * unit).to(torch.int64).numpy()
