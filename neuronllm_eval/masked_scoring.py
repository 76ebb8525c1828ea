"""The scoring of `NeuronMaskedLM`: forks where that is exact, else row by row as lm-eval does.

1. Requests with one context become a fork (`continuations`), forks of alike contexts a family.
2. On the first forks, and on longer ones, the model proves that forks give what rows do.
3. Whatever is left, such as prompts longer than the model's context, is scored row by row.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from neuronllm_eval.continuations import Fork, ForkScorer, Mask, families
from neuronllm_eval.errors import UsageError
from neuronllm_eval.fork_check import Answers, ForkStyle, exact_style
from neuronllm_eval.prompts import shared_leading_tokens
from neuronllm_eval.scoring import right_pad

logger = logging.getLogger(__name__)
# ((context, continuation), context ids, continuation ids), as TemplateLM hands it over.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]
# Per context and continuation the places of its requests.
_Places = dict[tuple[int, ...], dict[tuple[int, ...], list[int]]]


class MaskedScoringLM(HFLM):
    """A Hugging Face causal LM that answers under a mask.

    Attributes:
        fast: score forks where that is exact; else all is scored row by row.
    """

    fast: bool = True
    _mask: Mask | None = None
    _fork_style: ForkStyle | None = None
    _checked_columns: int = 0

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._mask is None or not self._mask.everywhere:  # what is scored is masked elsewhere
            return super()._model_call(inps, *args, **kwargs)
        with self._mask.on():
            return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._mask is not None and not self._mask.everywhere:
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
    ) -> list[tuple[float, bool]]:
        places = self._places(requests)
        results: list[tuple[float, bool] | None] = [None] * len(requests)
        if places:
            n_rows = self._rows_per_batch(requests, override_bs)
            for fork, answers in self._score_forks(places, n_rows, disable_tqdm):
                for continuation, answer in zip(fork.continuations, answers, strict=True):
                    for place in places[fork.context][continuation]:
                        results[place] = answer
                        self._remember(requests[place], answer, fork.n_shared)
        left = [place for place, result in enumerate(results) if result is None]
        if left:
            rows = [requests[place] for place in left]
            found = self._score_rows(rows, disable_tqdm, override_bs)
            for place, answer in zip(left, found, strict=True):
                results[place] = answer
        return results  # type: ignore[return-value]

    def _places(self, requests: list[_Request]) -> _Places:
        """Per context and continuation the places of its requests, where forks may do.

        A context that loses its beginning for some continuation, or has none but a prefix token, is
        left to row by row scoring.
        """
        if not self.fast or self.backend != "causal" or self.mixed_precision_dtype is not None:
            return {}
        found: _Places = {}
        unfit = set()
        for place, (_, context, continuation) in enumerate(requests):
            key = tuple(context)
            if len(context) < 2 or self._is_cut(context, continuation):
                unfit.add(key)
            found.setdefault(key, {}).setdefault(tuple(continuation), []).append(place)
        return {context: own for context, own in found.items() if context not in unfit}

    def _score_forks(
        self, places: _Places, n_rows: int, disable_tqdm: bool
    ) -> Iterator[tuple[Fork, list[tuple[float, bool]]]]:
        """Forks and their continuations' answers; nothing if rows give other numbers here."""
        forks = [Fork(context, tuple(continuations)) for context, continuations in places.items()]
        found = families(forks, 2 * n_rows)
        style = self._style([fork for family in found for fork in family])
        if style is None:
            return
        with tqdm(
            total=sum(len(fork.continuations) for fork in forks),
            disable=disable_tqdm or self.rank != 0,
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
                for start in range(0, len(family), n_rows):
                    batch = family[start : start + n_rows]
                    for fork, answers in zip(batch, scorer.score(batch), strict=True):
                        yield fork, answers
                        progress.update(len(answers))

    def _style(self, forks: list[Fork]) -> ForkStyle | None:
        """How forks are exact in this model. Found out anew if they are longer than before."""
        n_columns = max(fork.n_columns for fork in forks)
        if n_columns > self._checked_columns:
            self._checked_columns = n_columns
            self._fork_style = exact_style(
                self.model, forks, self._row_by_row, self._mask, self.softmax_dtype
            )
        return self._fork_style

    def _row_by_row(self, forks: Sequence[Fork]) -> Answers:
        requests: list[_Request] = [
            (None, list(fork.context), list(continuation))
            for fork in forks
            for continuation in fork.continuations
        ]
        answers = iter(self._score_rows(requests, True, len(requests)))
        return [[next(answers) for _ in fork.continuations] for fork in forks]

    def _score_rows(
        self, requests: list[_Request], disable_tqdm: bool, override_bs: int | None
    ) -> list[tuple[float, bool]]:
        """Every request by itself, as stock does."""
        if self._mask is None or self._mask.everywhere:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        return self._score_masked(requests, disable_tqdm, override_bs)

    def _remember(self, request: _Request, answer: tuple[float, bool], n_shared: int) -> None:
        """Put an answer into lm_eval's cache (`--use_cache`), if it is the request's own.

        The cache may come to hold some options of a doc only. What the options share would then be
        lost on the others, and with it which positions are edited.
        """
        alone = self._mask is None or self._mask.everywhere or not n_shared
        if request[0] is not None and alone:
            self.cache_hook.add_partial("loglikelihood", request[0], answer)

    @torch.no_grad()
    def _score_masked(
        self, requests: list[_Request], disable_tqdm: bool, override_bs: int | None
    ) -> list[tuple[float, bool]]:
        """As `HFLM._loglikelihood_tokens`, but each row knows which of its columns are edited.

        Edited are the positions whose logits decide between the options: those of a request's
        continuation, without the leading tokens that all continuations of its context share.
        Requests with the same input and the same edited columns share a row.
        """
        n_shared = _shared_by_context(requests)
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
            n_edited = len(continuation) - n_shared[tuple(context)]
            rows.setdefault((ids, n_edited), []).append(index)
        ordered = sorted(rows, key=lambda row: (-len(row[0]), row))  # longest first, as HFLM
        size = self._rows_per_batch(requests, override_bs)
        results: list[tuple[float, bool] | None] = [None] * len(requests)
        progress = tqdm(
            total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Scoring, masked"
        )
        for start in range(0, len(ordered), size):
            chunk = ordered[start : start + size]
            tokens = right_pad([ids for ids, _ in chunk], self.device)
            columns = torch.zeros_like(tokens, dtype=torch.bool)
            for row, (ids, n_edited) in enumerate(chunk):
                columns[row, len(ids) - n_edited : len(ids)] = True
            with nullcontext() if self._mask is None else self._mask.on(columns):
                logits = self._model_call(tokens)
            for row, key in enumerate(chunk):
                for index in rows[key]:
                    _, context, continuation = requests[index]
                    answer = self._answer(logits[row, : len(key[0])], continuation)
                    results[index] = answer
                    self._remember(requests[index], answer, n_shared[tuple(context)])
                    progress.update()
        progress.close()
        assert all(result is not None for result in results)
        return results  # type: ignore[return-value]

    def _is_cut(self, context: list[int], continuation: list[int]) -> bool:
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
        if override_bs:
            return override_bs
        longest = max(range(len(requests)), key=lambda i: sum(map(len, requests[i][1:])))
        return self._detect_batch_size(requests, longest)


def _shared_by_context(requests: list[_Request]) -> dict[tuple[int, ...], int]:
    """Per context, how many leading tokens its continuations share; 0 where there is but one."""
    continuations: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for _, context, continuation in requests:
        continuations.setdefault(tuple(context), set()).add(tuple(continuation))
    return {
        context: shared_leading_tokens(list(found)) if len(found) > 1 else 0
        for context, found in continuations.items()
    }
