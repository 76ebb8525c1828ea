"""The scoring of `NeuronMaskedLM`: forks where that is exact, else row by row as lm-eval does.

1. Requests with one context become a fork (`shared_context_scoring`), forks of similar contexts a
   family.
2. On the first forks, and on longer ones, the model is checked: forks must give what rows give.
3. Whatever is left, such as prompts longer than the model's context, is scored row by row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from neuronllm_eval.engine.batching import batched
from neuronllm_eval.engine.option_logits import right_pad
from neuronllm_eval.errors import UsageError
from neuronllm_eval.masked_lm.shared_context_scoring import (
    Answers,
    Fork,
    ForkScorer,
    ForkStyle,
    Mask,
    exact_style,
    families,
)
from neuronllm_eval.runtime.process import bar

logger = logging.getLogger(__name__)
# ((context, continuation), context ids, continuation ids), as TemplateLM hands it over.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]
_Answer = tuple[float, bool]


class MaskedScoringLM(HFLM):
    """A Hugging Face causal LM that answers under a mask.

    Attributes:
        fast: score forks where that is exact; else all is scored row by row.
    """

    fast: bool = True
    _mask: Mask | None = None
    _fork_style: ForkStyle | None = None
    _checked: tuple[int, int] = (0, 0)  # tokens and queries
    # Of the requests at hand: the docs they are of.
    _docs: Sequence[tuple[str | None, int | None]] = ()

    @property
    def _masks_some_positions(self) -> bool:
        return self._mask is not None and not self._mask.all_positions

    def _masked(self, columns: Tensor | None = None) -> AbstractContextManager[None]:
        return nullcontext() if self._mask is None else self._mask.on(columns)

    # Calls of the model --------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[_Answer]:
        """See `HFLM.loglikelihood`."""
        self._docs = [(request.task_name, request.doc_id) for request in requests]
        try:
            return super().loglikelihood(requests, disable_tqdm)
        finally:
            self._docs = ()

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Where some positions are masked, the caller says which.
        with nullcontext() if self._masks_some_positions else self._masked():
            return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._masks_some_positions:
            raise UsageError(
                "positions=scored with a task that generates text",
                expected="positions=all, since generated text has no scored position",
                remedy="add positions=all to --model_args",
            )
        with self._masked():
            return super()._model_generate(*args, **kwargs)

    # Requests -----------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: list[_Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[_Answer]:
        if not (self.fast or self._masks_some_positions) or not requests:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        # Once for all that follows: several processes must ask for it equally often.
        n_rows = self._rows_per_batch(requests, override_bs)
        forks = self._forks(requests)
        results: dict[int, _Answer] = {}
        for fork, answers in self._score_forks(list(forks), n_rows, disable_tqdm):
            for indices, answer in zip(forks[fork], answers, strict=True):
                for index in indices:
                    results[index] = answer
                    self._remember(requests[index], answer, fork)
        fork_of = {index: fork for fork in forks for indices in forks[fork] for index in indices}
        left = [index for index in range(len(requests)) if index not in results]
        if left:
            rows = [requests[index] for index in left]
            n_shared = [fork_of[index].n_shared for index in left]
            answers = self._score_rows(rows, n_shared, disable_tqdm, n_rows)
            for index, answer in zip(left, answers, strict=True):
                results[index] = answer
                self._remember(requests[index], answer, fork_of[index])
        return [results[index] for index in range(len(requests))]

    def _forks(self, requests: list[_Request]) -> dict[Fork, list[list[int]]]:
        """Requests whose continuations are scored together; by continuation their indices.

        Where some positions are edited, these are the options of one doc: which positions they
        share must not depend on what else the same call scores. A window of a rolling
        log-likelihood, which has no text of its own, is alone.
        """
        docs = self._docs if len(self._docs) == len(requests) else [None] * len(requests)
        groups: dict[Any, dict[tuple[int, ...], list[int]]] = {}
        for index, ((text, context, continuation), doc) in enumerate(
            zip(requests, docs, strict=True)
        ):
            owner = (index if text is None else doc) if self._masks_some_positions else None
            group = groups.setdefault((owner, tuple(context)), {})
            group.setdefault(tuple(continuation), []).append(index)
        forks: dict[Fork, list[list[int]]] = {}
        for (_, context), group in groups.items():
            fork = Fork(context, tuple(group))
            known = forks.setdefault(fork, [[] for _ in group])
            for indices, more in zip(known, group.values(), strict=True):
                indices += more
        return forks

    def _remember(self, request: _Request, answer: _Answer, fork: Fork) -> None:
        """Put an answer into lm_eval's cache (`--use_cache`), if it is the request's own.

        A run that is cut off leaves some options of a doc in the cache. What the options share
        would then be lost on the others, and with it which positions are edited: of options of one
        token each, no part shares any.
        """
        one_token = all(len(continuation) == 1 for continuation in fork.continuations)
        if request[0] is not None and (not self._masks_some_positions or one_token):
            self.cache_hook.add_partial("loglikelihood", request[0], answer)

    def _rows_per_batch(self, requests: list[_Request], override_bs: int | None) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        if override_bs is not None:
            return override_bs
        longest = max(range(len(requests)), key=lambda i: sum(map(len, requests[i][1:])))
        return self._detect_batch_size(requests, longest)

    # Forks --------------------------------------------------------------------------------------

    def _may_fork(self, fork: Fork) -> bool:
        """Whether no beginning is lost for some continuation, in a model that scores forks."""
        if not self.fast or self.backend != "causal" or self.mixed_precision_dtype is not None:
            return False
        return len(fork.context) > 1 and all(
            len(continuation) > 0 and not self._is_cut(fork.context, continuation)
            for continuation in fork.continuations
        )

    def _is_cut(self, context: Sequence[int], continuation: Sequence[int]) -> bool:
        return len(context) + len(continuation) > self.max_length + 1

    def _score_forks(
        self, forks: Sequence[Fork], n_rows: int, disable_tqdm: bool
    ) -> Iterator[tuple[Fork, list[_Answer]]]:
        """Forks and their continuations' answers; nothing if rows give other numbers here."""
        forks = [fork for fork in forks if self._may_fork(fork)]
        fork_families = families(forks, 2 * n_rows)
        style = self._style([fork for family in fork_families for fork in family], n_rows)
        if style is None:
            return
        with bar(
            shown=not disable_tqdm and self.rank == 0,
            total=sum(len(fork.continuations) for fork in forks),
            desc="Running loglikelihood requests",
        ) as progress:
            for family in fork_families:
                scorer = ForkScorer(
                    self.model,
                    style.mask_style,
                    family,
                    mask=self._mask,
                    share=style.share,
                    softmax_dtype=self.softmax_dtype,
                )
                for fork, answers in batched(family, n_rows, scorer.score):
                    yield fork, answers
                    progress.update(len(answers))

    def _style(self, forks: list[Fork], n_rows: int) -> ForkStyle | None:
        """How forks are exact in this model; checked again if they are longer or wider."""
        if not forks:
            return None
        n_tokens = max(fork.n_tokens for fork in forks)
        n_queries = max(fork.n_queries for fork in forks)
        if n_tokens > self._checked[0] or n_queries > self._checked[1]:
            self._checked = (max(n_tokens, self._checked[0]), max(n_queries, self._checked[1]))
            self._fork_style = exact_style(
                self.model,
                forks,
                lambda probes: self._row_by_row(probes, n_rows),
                self._mask,
                self.softmax_dtype,
            )
        return self._fork_style

    # Rows ---------------------------------------------------------------------------------------

    def _row_by_row(self, forks: Sequence[Fork], n_rows: int) -> Answers:
        pairs = [(fork, continuation) for fork in forks for continuation in fork.continuations]
        requests: list[_Request] = [
            (None, list(fork.context), list(continuation)) for fork, continuation in pairs
        ]
        n_shared = [fork.n_shared for fork, _ in pairs]
        answers = iter(self._score_rows(requests, n_shared, True, n_rows))
        return [[next(answers) for _ in fork.continuations] for fork in forks]

    def _score_rows(
        self, requests: list[_Request], n_shared: list[int], disable_tqdm: bool, n_rows: int
    ) -> list[_Answer]:
        """Every request by itself, as stock does; its `n_shared` leading tokens are not edited."""
        if self._masks_some_positions:
            return self._score_masked(requests, n_shared, disable_tqdm, n_rows)
        # Without their texts: the caller puts the answers into lm_eval's cache.
        unnamed: list[_Request] = [(None, context, rest) for _, context, rest in requests]
        return super()._loglikelihood_tokens(unnamed, disable_tqdm, n_rows)

    @torch.no_grad()
    def _score_masked(
        self, requests: list[_Request], n_shared: list[int], disable_tqdm: bool, n_rows: int
    ) -> list[_Answer]:
        """As `HFLM._loglikelihood_tokens`, but some columns of each row are edited.

        These are the positions whose logits decide between the options: those of a request's
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
        results: dict[int, _Answer] = {}
        with bar(
            shown=not disable_tqdm and self.rank == 0, total=len(requests), desc="Scoring, masked"
        ) as progress:
            for start in range(0, len(ordered), n_rows):
                batch = ordered[start : start + n_rows]
                tokens = right_pad([ids for ids, _ in batch], self.device)
                columns = torch.zeros_like(tokens, dtype=torch.bool)
                for row, (ids, n_edited) in enumerate(batch):
                    columns[row, len(ids) - n_edited : len(ids)] = True
                with self._masked(columns):
                    logits = self._model_call(tokens)
                for row, key in enumerate(batch):
                    for index in rows[key]:
                        row_logits = logits[row, : len(key[0])]
                        results[index] = self._answer(row_logits, requests[index][2])
                        progress.update()
        return [results[index] for index in range(len(requests))]

    def _answer(self, logits: Tensor, continuation: list[int]) -> _Answer:
        """Log-likelihood and greedy flag from a row's logits [positions, vocabulary]."""
        scored = logits[-len(continuation) :].log_softmax(-1, dtype=self.softmax_dtype)
        target = torch.tensor(continuation, device=scored.device)
        greedy = bool((scored.argmax(-1) == target).all())
        return float(scored.gather(-1, target[:, None]).sum()), greedy
