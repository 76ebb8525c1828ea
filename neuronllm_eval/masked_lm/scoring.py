"""The scoring of `NeuronMaskedLM`: forks where that is exact, else row by row as lm-eval does.

1. Requests with one context become a fork (`continuations`), forks of alike contexts a family.
2. On the first forks, and on longer ones, the model proves that forks give what rows do.
3. Whatever is left, such as prompts longer than the model's context, is scored row by row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from neuronllm_eval.engine.batching import compute_in_halves
from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.errors import UsageError
from neuronllm_eval.masked_lm.equivalence_check import Answers, ForkStyle, exact_style
from neuronllm_eval.masked_lm.shared_context_scoring import Fork, ForkScorer, Mask, families
from neuronllm_eval.runtime.progress import bar

logger = logging.getLogger(__name__)
# ((context, continuation), context ids, continuation ids), as TemplateLM hands it over.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]
_Answer = tuple[float, bool]


@dataclass
class _Group:
    """Requests with one context, of one doc where that matters: what they share is not edited.

    Attributes:
        context: token ids.
        places: per continuation the places of its requests.
    """

    context: tuple[int, ...]
    places: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    @property
    def fork(self) -> Fork:
        """The same as the engine takes it."""
        return Fork(self.context, tuple(self.places))

    @property
    def one_token(self) -> bool:
        """Whether all continuations have one token: then any part of them shares as little."""
        return all(len(continuation) == 1 for continuation in self.places)


class MaskedScoringLM(HFLM):
    """A Hugging Face causal LM that answers under a mask.

    Attributes:
        fast: score forks where that is exact; else all is scored row by row.
    """

    fast: bool = True
    _mask: Mask | None = None
    _fork_style: ForkStyle | None = None
    _checked: tuple[int, int] = (0, 0)  # columns and queries
    # Of the requests at hand: the docs they are of.
    _docs: Sequence[tuple[str | None, int | None]] = ()

    @property
    def _masks_some(self) -> bool:
        """Whether some positions are edited and others are not."""
        return self._mask is not None and not self._mask.everywhere

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[_Answer]:
        """See `HFLM.loglikelihood`."""
        self._docs = [(request.task_name, request.doc_id) for request in requests]
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self._docs = ()

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._mask is None or self._masks_some:  # what is scored is masked elsewhere
            return super()._model_call(inps, *args, **kwargs)
        with self._mask.on():
            return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._masks_some:
            raise UsageError(
                "positions=scored with a task that generates text",
                expected="positions=all, since generated text has no scored position",
                remedy="add positions=all to --model_args",
            )
        with nullcontext() if self._mask is None else self._mask.on():
            return super()._model_generate(*args, **kwargs)

    def _loglikelihood_tokens(
        self,
        requests: list[_Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[_Answer]:
        if not (self.fast or self._masks_some) or not requests:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        # Once for all that follows: several processes must ask for it equally often.
        n_rows = self._rows_per_batch(requests, override_bs)
        groups = self._groups(requests)
        results: list[_Answer | None] = [None] * len(requests)
        fit = [group for group in groups if self._may_fork(group)]
        for group, answers in self._score_forks(fit, n_rows, disable_tqdm):
            for places, answer in zip(group.places.values(), answers, strict=True):
                for place in places:
                    results[place] = answer
                    self._remember(requests[place], answer, group)
        left = [place for place, result in enumerate(results) if result is None]
        if left:
            owners = {place: group for group in groups for own in group.places.values()
                      for place in own}  # fmt: skip
            rows = [requests[place] for place in left]
            n_shared = [owners[place].fork.n_shared for place in left]
            found = self._score_rows(rows, n_shared, disable_tqdm, n_rows)
            for place, answer in zip(left, found, strict=True):
                results[place] = answer
                self._remember(requests[place], answer, owners[place])
        return results  # type: ignore[return-value]

    def _groups(self, requests: list[_Request]) -> list[_Group]:
        """Requests whose continuations are scored together.

        Where some positions are edited, these are the options of one doc: which positions they
        share must not depend on what else is asked in the same call. A window of a rolling
        log-likelihood, which has no text of its own, is alone.
        """
        docs = self._docs if len(self._docs) == len(requests) else [None] * len(requests)
        found: dict[Any, _Group] = {}
        for place, ((text, context, continuation), doc) in enumerate(
            zip(requests, docs, strict=True)
        ):
            ids = tuple(context)
            owner = (place if text is None else doc) if self._masks_some else None
            group = found.setdefault((owner, ids), _Group(ids))
            group.places.setdefault(tuple(continuation), []).append(place)
        return list(found.values())

    def _may_fork(self, group: _Group) -> bool:
        """Whether a group is one for forks: not if it loses its beginning for some continuation."""
        if not self.fast or self.backend != "causal" or self.mixed_precision_dtype is not None:
            return False
        return len(group.context) > 1 and all(
            len(each) > 0 and not self._is_cut(group.context, each) for each in group.places
        )

    def _score_forks(
        self, groups: Sequence[_Group], n_rows: int, disable_tqdm: bool
    ) -> Iterator[tuple[_Group, list[_Answer]]]:
        """Groups and their continuations' answers; nothing if rows give other numbers here."""
        owners: dict[Fork, list[_Group]] = {}
        for group in groups:
            owners.setdefault(group.fork, []).append(group)
        found = families(list(owners), 2 * n_rows)
        style = self._style([fork for family in found for fork in family], n_rows)
        if style is None:
            return
        with bar(
            shown=not disable_tqdm and self.rank == 0,
            total=sum(len(fork.continuations) for fork in owners),
            desc="Running loglikelihood requests",
        ) as progress:
            for family in found:
                scorer = ForkScorer(
                    self.model,
                    style.mask_style,
                    family,
                    mask=self._mask,
                    share=style.share,
                    softmax_dtype=self.softmax_dtype,
                )
                for fork, answers in _in_halves(family, n_rows, scorer):
                    for group in owners[fork]:
                        yield group, answers
                    progress.update(len(answers))

    def _style(self, forks: list[Fork], n_rows: int) -> ForkStyle | None:
        """How forks are exact in this model. Found out anew if they are longer or wider."""
        if not forks:
            return None
        columns = max(fork.n_columns for fork in forks)
        queries = max(fork.n_queries for fork in forks)
        if columns > self._checked[0] or queries > self._checked[1]:
            self._checked = (max(columns, self._checked[0]), max(queries, self._checked[1]))
            self._fork_style = exact_style(
                self.model,
                forks,
                lambda some: self._row_by_row(some, n_rows),
                self._mask,
                self.softmax_dtype,
            )
        return self._fork_style

    def _row_by_row(self, forks: Sequence[Fork], n_rows: int) -> Answers:
        asked = [(fork, continuation) for fork in forks for continuation in fork.continuations]
        requests: list[_Request] = [
            (None, list(fork.context), list(continuation)) for fork, continuation in asked
        ]
        n_shared = [fork.n_shared for fork, _ in asked]
        answers = iter(self._score_rows(requests, n_shared, True, n_rows))
        return [[next(answers) for _ in fork.continuations] for fork in forks]

    def _score_rows(
        self, requests: list[_Request], n_shared: list[int], disable_tqdm: bool, n_rows: int
    ) -> list[_Answer]:
        """Every request by itself, as stock does; its `n_shared` leading tokens are not edited."""
        if self._masks_some:
            return self._score_masked(requests, n_shared, disable_tqdm, n_rows)
        # Without their texts: the caller puts the answers into lm_eval's cache.
        unnamed: list[_Request] = [(None, each[1], each[2]) for each in requests]
        return super()._loglikelihood_tokens(unnamed, disable_tqdm, n_rows)

    def _remember(self, request: _Request, answer: _Answer, group: _Group) -> None:
        """Put an answer into lm_eval's cache (`--use_cache`), if it is the request's own.

        A run that is cut off leaves some options of a doc in the cache. What the options share
        would then be lost on the others, and with it which positions are edited.
        """
        if request[0] is not None and (not self._masks_some or group.one_token):
            self.cache_hook.add_partial("loglikelihood", request[0], answer)

    @torch.no_grad()
    def _score_masked(
        self, requests: list[_Request], n_shared: list[int], disable_tqdm: bool, n_rows: int
    ) -> list[_Answer]:
        """As `HFLM._loglikelihood_tokens`, but each row knows which of its columns are edited.

        Edited are the positions whose logits decide between the options: those of a request's
        continuation, without its `n_shared` leading tokens, which a doc's options share.
        Requests with the same input and the same edited columns share a row.
        """
        cut = {tuple(context) for _, context, rest in requests if self._is_cut(context, rest)}
        if cut:
            logger.warning(
                "%d prompts are longer than the model's context of %d and lose their beginning, as "
                "with --model hf; neuronllm-eval validate drops demonstrations instead",
                len(cut),
                self.max_length,
            )
        rows: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            ids = tuple((context + continuation)[-(self.max_length + 1) :][:-1])
            n_edited = len(continuation) - n_shared[index]
            rows.setdefault((ids, n_edited), []).append(index)
        ordered = sorted(rows, key=lambda row: (-len(row[0]), row))  # longest first, as HFLM
        results: list[_Answer | None] = [None] * len(requests)
        progress = bar(
            shown=not disable_tqdm and self.rank == 0, total=len(requests), desc="Scoring, masked"
        )
        for start in range(0, len(ordered), n_rows):
            chunk = ordered[start : start + n_rows]
            tokens = right_pad([ids for ids, _ in chunk], self.device)
            columns = torch.zeros_like(tokens, dtype=torch.bool)
            for row, (ids, n_edited) in enumerate(chunk):
                columns[row, len(ids) - n_edited : len(ids)] = True
            with nullcontext() if self._mask is None else self._mask.on(columns):
                logits = self._model_call(tokens)
            for row, key in enumerate(chunk):
                for index in rows[key]:
                    results[index] = self._answer(logits[row, : len(key[0])], requests[index][2])
                    progress.update()
        progress.close()
        assert all(result is not None for result in results)
        return results  # type: ignore[return-value]

    def _is_cut(self, context: Sequence[int], continuation: Sequence[int]) -> bool:
        return len(context) + len(continuation) > self.max_length + 1

    def _answer(self, logits: Tensor, continuation: list[int]) -> tuple[float, bool]:
        """Log-likelihood and greedy flag from a row's logits [positions, vocabulary]."""
        scored = logits[-len(continuation) :].log_softmax(-1, dtype=self.softmax_dtype)
        target = torch.tensor(continuation, device=scored.device)
        greedy = bool((scored.argmax(-1) == target).all())
        return float(scored.gather(-1, target[:, None]).sum()), greedy

    def _rows_per_batch(self, requests: list[_Request], override_bs: int | None) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        if override_bs is not None:
            return override_bs
        longest = max(range(len(requests)), key=lambda i: sum(map(len, requests[i][1:])))
        return self._detect_batch_size(requests, longest)


def _in_halves(
    family: Sequence[Fork], size: int, scorer: ForkScorer
) -> Iterator[tuple[Fork, list[_Answer]]]:
    """Forks and their answers, in batches of `size`, halved for good where memory runs out."""
    start = 0
    while start < len(family):
        batch = list(family[start : start + size])
        found, fitting = compute_in_halves(batch, scorer.score)
        size = fitting if fitting < len(batch) else size
        yield from zip(batch, found, strict=True)
        start += len(batch)
