"""Several continuations of a context, scored in one pass over what they share.

lm-eval asks for the log-likelihood of every (context, continuation) by itself. Here the
continuations of a context are a fork: the context is read once (`engine.shared_prefix`, which also
shares what contexts have in common), and then, in one sequence,

1. the trunk: the context's last token and the tokens that all continuations begin with,
2. a branch for each continuation, whose tokens see the context, the trunk and their own branch.

Logits are computed where a continuation is read off, and nowhere else. Exact up to float rounding
in most models; `exact_style` finds out on a model's own requests.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.build import BROKEN, Mismatch, rounding_tolerance
from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.engine.shared_prefix import (
    MaskStyle,
    Prefiller,
    Prefix,
    Rows,
    group_by_stem,
    mask_styles,
    n_common,
)
from neuronllm_eval.models.hooks import FactorCache, scale_neurons
from neuronllm_eval.prompts import shared_leading_tokens

logger = logging.getLogger(__name__)
# A list of sorted contexts is cut where neighbours share less than this part of what is usual.
_UNUSUALLY_LITTLE = 0.5
# Per fork and continuation: log-likelihood in log-nats, and whether it is greedy.
Answers = list[list[tuple[float, bool]]]


@dataclass(frozen=True)
class Fork:
    """A context and what may follow it.

    Attributes:
        context: token ids.
        continuations: distinct, of at least one token id each.
    """

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @cached_property
    def n_shared(self) -> int:
        """Leading tokens that all continuations share, as `shared_leading_tokens`; 0 of one."""
        return shared_leading_tokens(self.continuations) if len(self.continuations) > 1 else 0

    @cached_property
    def n_queries(self) -> int:
        """Tokens of the trunk and the branches: no branch feeds its last token."""
        branches = sum(len(tokens) - self.n_shared - 1 for tokens in self.continuations)
        return 1 + self.n_shared + branches

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of the context, the trunk and the branches."""
        return len(self.context) - 1 + self.n_queries

    @property
    def trunk(self) -> tuple[int, ...]:
        """The context's last token and the shared ones."""
        return (self.context[-1], *self.continuations[0][: self.n_shared])

    def branches(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Per continuation the query its branch begins at, and its tokens behind the trunk."""
        start = 1 + self.n_shared
        for continuation in self.continuations:
            rest = continuation[self.n_shared :]
            yield start, rest
            start += len(rest) - 1


@dataclass(frozen=True)
class Mask:
    """Factors of every neuron, and where they act.

    Attributes:
        modules: down-projections, one per layer.
        factors: [layers, neurons].
        all_positions: whether they act at all positions, or only where logits decide between a
            context's continuations: at the trunk's last token and the branches.
    """

    modules: Sequence[nn.Module]
    factors: Tensor
    all_positions: bool
    _cache: FactorCache = field(default_factory=dict, repr=False, compare=False)

    def on(self, columns: Tensor | None = None) -> AbstractContextManager[None]:
        """Within the context the mask acts, at these columns [batch, positions] only if given."""
        return scale_neurons(self.modules, self.factors, columns, self._cache)


class ForkScorer:
    """Scores forks that belong together.

    Args:
        model: a Hugging Face causal LM in eval mode.
        mask_style: how its attention takes its mask; see `attention_masks`.
        forks: all that will be scored; their contexts' common beginning is read once.
        mask: what is done to the neurons; None leaves the model as it is.
        share: False to read every context by itself.
        softmax_dtype: of the log-softmax; the logits' own if None, as in lm-eval.
    """

    def __init__(
        self,
        model: nn.Module,
        mask_style: MaskStyle,
        forks: Sequence[Fork],
        *,
        mask: Mask | None = None,
        share: bool = True,
        softmax_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.mask = mask
        self.softmax_dtype = softmax_dtype
        contexts = [fork.context for fork in forks]
        most_columns = max(fork.n_tokens for fork in forks) if forks else None
        self.prefiller = Prefiller(
            model, mask_style, contexts, share=share, most_columns=most_columns
        )

    @torch.no_grad()
    def score(self, forks: Sequence[Fork]) -> Answers:
        """Per fork and continuation the log-likelihood in log-nats, and whether it is greedy."""
        contexts = [fork.context for fork in forks]
        if self.mask is None or self.mask.all_positions:
            with nullcontext() if self.mask is None else self.mask.on():
                return self._read(forks, self._logits(forks, self.prefiller.prefill(contexts)))
        prefix = self.prefiller.prefill(contexts)
        with self.mask.on(_decisive(forks).to(prefix.lengths.device)):
            return self._read(forks, self._logits(forks, prefix))

    def _logits(self, forks: Sequence[Fork], prefix: Prefix) -> Tensor:
        """[batch, queries, vocabulary]."""
        rows = _layout(forks, prefix.lengths.device)
        return self.model(**self.prefiller.inputs(prefix, rows)).logits

    def _read(self, forks: Sequence[Fork], logits: Tensor) -> Answers:
        """Read the continuations off the logits: all of a batch in one gather."""
        queries = torch.tensor([fork.n_queries for fork in forks], device=logits.device)
        real = torch.arange(logits.shape[1], device=logits.device) < queries[:, None]
        scores = logits[real].log_softmax(
            -1, dtype=self.softmax_dtype
        )  # [real queries, vocabulary]
        likeliest = scores.argmax(-1)
        rows: list[int] = []
        targets: list[int] = []
        first = 0
        for fork in forks:
            for start, rest in fork.branches():
                shared = fork.continuations[0][: fork.n_shared]
                rows += [*range(first, first + fork.n_shared + 1)]
                rows += [*range(first + start, first + start + len(rest) - 1)]
                targets += [*shared, *rest]
            first += fork.n_queries
        row_ids = torch.tensor(rows, device=scores.device)
        target_ids = torch.tensor(targets, device=scores.device)
        lengths = [len(continuation) for fork in forks for continuation in fork.continuations]
        values = scores[row_ids, target_ids].cpu().split(lengths)
        greedy = (likeliest[row_ids] == target_ids).cpu().split(lengths)
        pairs = zip(values, greedy, strict=True)
        answers = iter([(float(tokens.sum()), bool(flags.all())) for tokens, flags in pairs])
        return [[next(answers) for _ in fork.continuations] for fork in forks]


def _decisive(forks: Sequence[Fork]) -> Tensor:
    """[batch, queries] bool: all but what comes before the trunk's last token, and padding."""
    columns = torch.zeros(len(forks), max(fork.n_queries for fork in forks), dtype=torch.bool)
    for row, fork in enumerate(forks):
        columns[row, fork.n_shared : fork.n_queries] = True
    return columns


def _layout(forks: Sequence[Fork], device: torch.device) -> Rows:
    """Each fork's queries; padding sees itself, and has the position of a token of its fork."""
    longest = max(fork.n_queries for fork in forks)
    tokens: list[list[int]] = []
    positions = torch.empty(len(forks), longest, dtype=torch.long)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(forks), 1, 1)
    for row, fork in enumerate(forks):
        trunk = fork.trunk
        n_trunk, last = len(trunk), len(fork.context) - 1
        positions[row] = last
        positions[row, :n_trunk] = last + torch.arange(n_trunk)
        sees[row, : fork.n_queries, :n_trunk] = True
        sees[row, :n_trunk, :n_trunk] = torch.ones(n_trunk, n_trunk, dtype=torch.bool).tril()
        queries = list(trunk)
        for start, rest in fork.branches():
            n_fed = len(rest) - 1
            stop = start + n_fed
            positions[row, start:stop] = last + n_trunk + torch.arange(n_fed)
            sees[row, start:stop, start:stop] = torch.ones(n_fed, n_fed, dtype=torch.bool).tril()
            queries += rest[:-1]
        tokens.append(queries)
    return Rows(right_pad(tokens, device), positions.to(device), sees.to(device))


def families(forks: Sequence[Fork], least: int) -> list[list[Fork]]:
    """Forks whose contexts begin alike, such as those of a task: each family shares a prefix.

    Args:
        forks: of one or several tasks, in any order.
        least: smaller families are merged into one.

    Returns:
        lists that hold every fork once. In each of them, forks that share a stem are side by side,
        and the longer ones come first, so that a batch has little padding.
    """
    ordered = sorted(forks, key=lambda fork: fork.context)
    shared = [n_common(one.context, other.context) for one, other in itertools.pairwise(ordered)]
    usual = sorted(shared)[len(shared) // 2] if shared else 0
    runs: list[list[Fork]] = [[]]
    for index, fork in enumerate(ordered):
        if index > 0 and shared[index - 1] < _UNUSUALLY_LITTLE * usual:
            runs.append([])
        runs[-1].append(fork)
    large = [family for family in runs if len(family) >= least]
    small = [fork for family in runs if len(family) < least for fork in family]
    return [_longest_first(family) for family in (*large, small) if family]


def _longest_first(forks: Sequence[Fork]) -> list[Fork]:
    """Groups that share a stem, those of the longest forks first."""
    contexts = [fork.context for fork in forks]
    n_shared = n_common(contexts[0], contexts[-1])  # of sorted contexts
    groups = [[forks[row] for row in group.rows] for group in group_by_stem(contexts, n_shared)]
    groups.sort(key=lambda group: -max(fork.n_tokens for fork in group))
    return [fork for group in groups for fork in group]


# Whether forks are exact ------------------------------------------------------------------------


class ForkStyle(NamedTuple):
    """How a model scores forks exactly; see `ForkScorer`."""

    mask_style: MaskStyle
    share: bool


def exact_style(
    model: nn.Module,
    forks: Sequence[Fork],
    row_by_row: Callable[[Sequence[Fork]], Answers],
    mask: Mask | None,
    softmax_dtype: torch.dtype | None,
) -> ForkStyle | None:
    """The way in which this model scores forks as it scores rows, or None if there is none.

    Args:
        model: a Hugging Face causal LM in eval mode.
        forks: of one family, in order; a few of them are scored both ways.
        row_by_row: scores forks by plain forward passes.
        mask: what is done to the neurons.
        softmax_dtype: see `ForkScorer`.
    """
    probes = _probes(forks)
    expected = _values(row_by_row(probes))
    contexts = [(fork.context, fork.continuations) for fork in probes]
    reasons: list[Mismatch] = []
    try:
        tolerance = rounding_tolerance(model, contexts, float(expected.abs().max()))
        styles = [ForkStyle(*way) for way in itertools.product(mask_styles(model), (True, False))]
    except BROKEN as error:  # such as a model that keeps no keys and values
        reasons.append(Mismatch.of(error))
        styles = []
    for style in styles:
        scorer = ForkScorer(
            model,
            style.mask_style,
            probes,
            mask=mask,
            share=style.share,
            softmax_dtype=softmax_dtype,
        )
        reason = _mismatch(scorer, probes, expected, tolerance)
        if reason is None:
            for passed_over in reasons[-1:]:
                logger.log(
                    passed_over.log_level,
                    "another way to score forks was passed over: %s",
                    passed_over,
                )
            return style
        reasons.append(reason)
    logger.log(
        max((reason.log_level for reason in reasons), default=logging.INFO),
        "every continuation is scored by itself: %s",
        "; ".join(map(str, reasons)) or "no mask fits",
    )
    return None


def _mismatch(
    scorer: ForkScorer, probes: Sequence[Fork], expected: Tensor, tolerance: float
) -> Mismatch | None:
    try:
        answers = scorer.score(probes)
    except BROKEN as error:
        return Mismatch.of(error)
    gap = float((_values(answers) - expected).abs().max())
    if gap <= tolerance:  # NaN is not
        return None
    return Mismatch(f"differs by {gap:.3g} log-nats (tolerance {tolerance:.3g})")


def _values(answers: Answers) -> Tensor:
    """All log-likelihoods, log-nats."""
    return torch.tensor([value for of_fork in answers for value, _ in of_fork], dtype=torch.float64)


def _probes(forks: Sequence[Fork]) -> list[Fork]:
    """The longest fork and its neighbour, the one of most queries, and the shortest."""
    longest = max(range(len(forks)), key=lambda index: forks[index].n_tokens)
    chosen = {longest, min(longest + 1, len(forks) - 1)}
    chosen.add(max(range(len(forks)), key=lambda index: forks[index].n_queries))
    chosen.add(min(range(len(forks)), key=lambda index: forks[index].n_tokens))
    return [forks[index] for index in sorted(chosen)]
