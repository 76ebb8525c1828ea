"""Several continuations of a context, scored in one pass over what they share.

lm-eval asks for the log-likelihood of every (context, continuation) by itself. Here the
continuations of a context are a fork: the context is read once (`prefix`, which also shares what
contexts have in common), and then, in one sequence,

1. the trunk: the context's last token and the tokens that all continuations begin with,
2. a branch for each continuation, whose tokens see the context, the trunk and their own branch.

Logits are computed where a continuation is read off, and nowhere else. Exact up to float rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from neuronllm_eval.engine.attention_masks import MaskStyle, attention_masks
from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.engine.shared_prefix import Prefiller, Prefix, group_by_stem
from neuronllm_eval.models.hooks import PlacedFactors, scale_neurons
from neuronllm_eval.prompts import shared_leading_tokens

# A list of sorted contexts is cut where neighbours share less than this part of what is usual.
_UNUSUALLY_LITTLE = 0.5


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
        """Leading tokens that all continuations share, each keeping one; 0 of a single one."""
        return shared_leading_tokens(self.continuations) if len(self.continuations) > 1 else 0

    @cached_property
    def n_queries(self) -> int:
        """Tokens of the trunk and the branches: no branch feeds its last token."""
        branches = sum(len(each) - self.n_shared - 1 for each in self.continuations)
        return 1 + self.n_shared + branches

    @cached_property
    def n_columns(self) -> int:
        """Tokens of the context, the trunk and the branches."""
        return len(self.context) - 1 + self.n_queries

    @property
    def n_tokens(self) -> int:
        """The same, as prompts call it."""
        return self.n_columns

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
        everywhere: at all positions; else at those whose logits decide between a context's
            continuations: the trunk's last token and the branches.
    """

    modules: Sequence[nn.Module]
    factors: Tensor
    everywhere: bool
    _placed: PlacedFactors = field(default_factory=dict, repr=False, compare=False)

    def on(self, columns: Tensor | None = None) -> AbstractContextManager[None]:
        """Within the context the mask acts, at these columns [batch, positions] only if given."""
        return scale_neurons(self.modules, self.factors, columns, self._placed)


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
        self.mask_style = mask_style
        self.mask = mask
        self.softmax_dtype = softmax_dtype
        contexts = [fork.context for fork in forks]
        most_columns = max(fork.n_columns for fork in forks) if forks else None
        self.prefiller = Prefiller(
            model, mask_style, contexts, share=share, most_columns=most_columns
        )

    @torch.no_grad()
    def score(self, forks: Sequence[Fork]) -> list[list[tuple[float, bool]]]:
        """Per fork and continuation the log-likelihood in log-nats, and whether it is greedy."""
        everywhere = self.mask is not None and self.mask.everywhere
        with self.mask.on() if self.mask is not None and everywhere else nullcontext():
            prefix = self.prefiller.prefill([fork.context for fork in forks])
            if everywhere or self.mask is None:
                return self._read(forks, self._logits(forks, prefix))
        with self.mask.on(self._decisive(forks, prefix.lengths.device)):
            return self._read(forks, self._logits(forks, prefix))

    @staticmethod
    def _decisive(forks: Sequence[Fork], device: torch.device) -> Tensor:
        """[batch, queries] bool: all but what comes before the trunk's last token, and padding."""
        longest = max(fork.n_queries for fork in forks)
        columns = torch.zeros(len(forks), longest, dtype=torch.bool)
        for row, fork in enumerate(forks):
            columns[row, fork.n_shared : fork.n_queries] = True
        return columns.to(device)

    def _logits(self, forks: Sequence[Fork], prefix: Prefix) -> Tensor:
        """[batch, queries, vocabulary]."""
        device = prefix.lengths.device
        tokens, places, sees = _layout(forks)
        places = places.to(device)
        masks: Any = attention_masks(
            self.model, self.mask_style, prefix.positions, places, sees.to(device)
        )
        output = self.model(
            input_ids=right_pad(tokens, device),
            position_ids=places,
            attention_mask=masks,
            past_key_values=prefix.cache(),
            use_cache=True,
        )
        return output.logits

    def _read(self, forks: Sequence[Fork], logits: Tensor) -> list[list[tuple[float, bool]]]:
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
        where = torch.tensor(rows, device=scores.device)
        wanted = torch.tensor(targets, device=scores.device)
        values = scores[where, wanted].cpu()
        greedy = (likeliest[where] == wanted).cpu()
        answers: list[list[tuple[float, bool]]] = []
        end = 0
        for fork in forks:
            own = []
            for continuation in fork.continuations:
                begin, end = end, end + len(continuation)
                own.append((float(values[begin:end].sum()), bool(greedy[begin:end].all())))
            answers.append(own)
        return answers


def _layout(forks: Sequence[Fork]) -> tuple[list[list[int]], Tensor, Tensor]:
    """Tokens of each fork's queries, their places in the prompt, and which see which.

    Returns:
        per fork its tokens; [batch, queries] places; [batch, queries, queries] bool. Padding sees
        itself, and has the place of a token of its fork.
    """
    longest = max(fork.n_queries for fork in forks)
    tokens: list[list[int]] = []
    places = torch.empty(len(forks), longest, dtype=torch.long)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(forks), 1, 1)
    for row, fork in enumerate(forks):
        trunk = fork.trunk
        n_trunk, last = len(trunk), len(fork.context) - 1
        places[row] = last
        places[row, :n_trunk] = last + torch.arange(n_trunk)
        sees[row, : fork.n_queries, :n_trunk] = True
        sees[row, :n_trunk, :n_trunk] = torch.ones(n_trunk, n_trunk, dtype=torch.bool).tril()
        own = list(trunk)
        for start, rest in fork.branches():
            n_own = len(rest) - 1
            stop = start + n_own
            places[row, start:stop] = last + n_trunk + torch.arange(n_own)
            sees[row, start:stop, start:stop] = torch.ones(n_own, n_own, dtype=torch.bool).tril()
            own += rest[:-1]
        tokens.append(own)
    return tokens, places, sees


def families(forks: Sequence[Fork], least: int) -> list[list[Fork]]:
    """Forks whose contexts begin alike, such as those of a task: each family shares a prefix.

    Args:
        forks: of one or several tasks, in any order.
        least: smaller families are put together into one.

    Returns:
        lists that hold every fork once. In each of them, forks that share a stem are side by side,
        and the longer ones come first, so that a batch has little padding.
    """
    ordered = sorted(forks, key=lambda fork: fork.context)
    alike = [_common(one.context, other.context) for one, other in itertools.pairwise(ordered)]
    usual = sorted(alike)[len(alike) // 2] if alike else 0
    found: list[list[Fork]] = [[]]
    for place, fork in enumerate(ordered):
        if place > 0 and alike[place - 1] < _UNUSUALLY_LITTLE * usual:
            found.append([])
        found[-1].append(fork)
    large = [family for family in found if len(family) >= least]
    small = [fork for family in found if len(family) < least for fork in family]
    return [_longest_first(family) for family in (*large, small) if family]


def _longest_first(forks: Sequence[Fork]) -> list[Fork]:
    """Groups that share a stem, those of the longest forks first."""
    contexts = [fork.context for fork in forks]
    n_shared = _common(contexts[0], contexts[-1])  # of sorted contexts
    groups = [[forks[row] for row in group.rows] for group in group_by_stem(contexts, n_shared)]
    groups.sort(key=lambda group: -max(fork.n_columns for fork in group))
    return [fork for group in groups for fork in group]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two contexts share."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
