"""`NeuronMaskedLM`: lm-eval's Hugging Face model with a neuron mask in its forward pass.

Registered with the harness as `neuronllm`:

    --model neuronllm --model_args pretrained=M,neurons=RUN_DIR,condition=suppress_good

1. The mask is a factor for every neuron, made from a `NeuronSet` and a condition.
2. `positions=scored` edits only the positions whose logits are scored, as in the paper;
   `positions=all` edits every position, as an exported adapter does.
3. The unmasked condition registers no hook at all: results are those of `--model hf`.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from tqdm import tqdm

from neuronllm_eval.architectures import find_ffn_layers
from neuronllm_eval.conditions import (
    OPERATIONS,
    UNMASKED,
    ConditionName,
    Scales,
    condition_scales,
    only_operation,
)
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.fingerprints import digest, model_hash
from neuronllm_eval.hooks import scale_neurons
from neuronllm_eval.neurons import NeuronSet
from neuronllm_eval.prompts import shared_leading_tokens
from neuronllm_eval.ranks import meet, other_ranks_needed, share_docs
from neuronllm_eval.scoring import right_pad

POSITIONS = ("scored", "all")
logger = logging.getLogger(__name__)
_CACHE_STAMP = "neuronllm_eval"
# ((context, continuation), context ids, continuation ids), as TemplateLM hands it over.
_Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("neuronllm")
class NeuronMaskedLM(HFLM):
    """A Hugging Face causal LM under one condition.

    Args:
        pretrained: as for `--model hf`, like every other argument not named here.
        neurons: run directory of `identify`, or its `neurons.json`. Without it the model is
            unmasked.
        condition: one of `conditions.CONDITIONS`, a point of a sweep such as
            `suppress_good.k50.x0.5`, or either with `.random_<seed>`; must be given with
            `neurons`.
        scale: the factor of the condition's only operation; for `degrade` and `enhance`, which
            have two, give `suppress_scale` and `enhance_scale`.
        suppress_scale: factor of suppressed neurons, 0 if not given.
        enhance_scale: factor of enhanced neurons, 2 if not given.
        top_k: use the first so many good and bad neurons of the set; all if not given.
        positions: `scored` or `all`.

    Raises:
        UsageError: unknown condition or positions, or arguments that do not go together.
        ArtifactError: the neurons file is missing, damaged, or holds fewer than `top_k`.
        ModelError: the neurons are of a model of another shape, or the model has no FFN layers.
    """

    def __init__(
        self,
        pretrained: Any,
        neurons: str | Path | NeuronSet | None = None,
        condition: str | None = None,
        scale: float | None = None,
        suppress_scale: float | None = None,
        enhance_scale: float | None = None,
        top_k: int | None = None,
        positions: str = "scored",
        **kwargs: Any,
    ) -> None:
        # Everything a user can get wrong is checked before the weights are loaded.
        if positions not in POSITIONS:
            raise UsageError(
                f"positions is {positions!r}",
                expected=" or ".join(POSITIONS),
                remedy="check positions in --model_args",
            )
        if condition is None:
            if neurons is not None:
                raise UsageError(
                    "neurons without a condition",
                    expected="what to do with them: " + ", ".join(OPERATIONS),
                    remedy="add condition=suppress_good, say, to --model_args",
                )
            condition = UNMASKED
        self.positions = positions
        self.condition = condition
        self.scales = _scales(condition, scale, suppress_scale, enhance_scale)
        self.neuron_set = _neuron_set(neurons, condition, top_k)
        if kwargs.get("tp_plan") is None:
            meet(kwargs.get("device"))
        super().__init__(pretrained, **kwargs)
        self._mask: Tensor | None = None
        if self.neuron_set is not None:
            layers = find_ffn_layers(self.model)
            require_same_shape(self.neuron_set, layers.shape, str(pretrained))
            warn_of_other_weights(self.neuron_set, self.model, str(pretrained))
        if self.neuron_set is not None and condition != UNMASKED:
            self._down_projections = layers.modules
            factors = condition_scales(self.neuron_set, condition, self.scales)
            self._mask = torch.from_numpy(factors)
        share_docs(self)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """As lm_eval does it, like the next two."""
        with other_ranks_needed():
            return super().all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """What every process has, on one of them."""
        with other_ranks_needed():
            return super().gather_object(obj, dst)

    def barrier(self) -> None:
        """Wait for the other processes."""
        with other_ranks_needed():
            super().barrier()

    def _masked(self, columns: Tensor | None = None) -> AbstractContextManager[None]:
        if self._mask is None:
            return nullcontext()
        return scale_neurons(self._down_projections, self._mask, columns)

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.positions == "scored":  # `_loglikelihood_tokens` masks what it scores
            return super()._model_call(inps, *args, **kwargs)
        with self._masked():
            return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._mask is not None and self.positions == "scored":
            raise UsageError(
                "positions=scored with a task that generates text",
                expected="positions=all, since generated text has no scored position",
                remedy="add positions=all to --model_args",
            )
        with self._masked():
            return super()._model_generate(*args, **kwargs)

    def _loglikelihood_tokens(
        self,
        requests: list[_Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if self._mask is None or self.positions == "all":
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        return self._score_masked(requests, disable_tqdm, override_bs)

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
            with self._masked(columns):
                logits = self._model_call(tokens)
            for row, key in enumerate(chunk):
                for index in rows[key]:
                    text, context, continuation = requests[index]
                    results[index] = self._answer(logits[row, : len(key[0])], continuation)
                    # lm_eval's cache may hold some options of a doc only; what they share would
                    # then be lost on the others.
                    if text is not None and not n_shared[tuple(context)]:
                        self.cache_hook.add_partial("loglikelihood", text, results[index])
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

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use lm_eval's cache of answers (`--use_cache`), if they are this mask's and model's.

        The cache knows a request by its text alone, so it is stamped with whose answers it holds.

        Raises:
            UsageError: it holds answers of another mask or model.
        """
        if cache_hook.dbdict is not None:
            mine = self._identity()
            stamp = cache_hook.dbdict.get(_CACHE_STAMP)
            if stamp != mine and len(cache_hook.dbdict):
                raise UsageError(
                    "the cache of --use_cache holds answers of another model or condition",
                    expected="one cache for each model and condition",
                    remedy="pass another path to --use_cache",
                )
            cache_hook.dbdict[_CACHE_STAMP] = mine
        super().set_cache_hook(cache_hook)

    def _identity(self) -> str:
        mask = "" if self._mask is None else digest(str(self._mask.numpy().tobytes()))
        positions = "" if self._mask is None else self.positions
        return f"{model_hash(self.model)} {mask} {positions}".strip()

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's model information, plus the mask's identity."""
        info = super().get_model_info()
        info["neuronllm"] = {
            "condition": self.condition,
            "positions": self.positions,
            "suppress_scale": self.scales.suppress,
            "enhance_scale": self.scales.enhance,
            "n_good": len(self.neuron_set.good) if self.neuron_set else 0,
            "n_bad": len(self.neuron_set.bad) if self.neuron_set else 0,
        }
        return info


def _shared_by_context(requests: list[_Request]) -> dict[tuple[int, ...], int]:
    """Per context, how many leading tokens its continuations share; 0 where there is but one."""
    continuations: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for _, context, continuation in requests:
        continuations.setdefault(tuple(context), set()).add(tuple(continuation))
    return {
        context: shared_leading_tokens(list(found)) if len(found) > 1 else 0
        for context, found in continuations.items()
    }


def require_same_shape(neurons: NeuronSet, shape: tuple[int, int], model: str) -> None:
    """Raise ModelError unless the neurons belong to a model of `shape` [layers, neurons]."""
    if neurons.shape != shape:
        raise ModelError(
            f"the neurons were found in {neurons.provenance.model}, of {neurons.n_layers} layers "
            f"of {neurons.width} neurons; {model} has {shape[0]} layers of {shape[1]}",
            expected="the model they were found in",
            remedy="pass that model as pretrained=, or run identify on this one",
        )


def warn_of_other_weights(neurons: NeuronSet, model: nn.Module, name: str) -> None:
    """Log a warning if the neurons were found in other weights of the same dtype."""
    known = neurons.provenance
    same_dtype = known.dtype == str(next(model.parameters()).dtype).removeprefix("torch.")
    if same_dtype and known.model_hash != model_hash(model):
        logger.warning("the neurons were found in other weights than those of %s", name)


def _neuron_set(
    neurons: str | Path | NeuronSet | None, condition: str, top_k: int | None
) -> NeuronSet | None:
    if neurons is None:
        if condition != UNMASKED:
            raise UsageError(
                f"condition={condition} without neurons",
                expected="the run directory of `neuronllm-eval identify`",
                remedy="add neurons=RUN_DIR to --model_args",
            )
        return None
    found = neurons if isinstance(neurons, NeuronSet) else NeuronSet.load(Path(neurons))
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int):
            raise UsageError(
                f"top_k is {top_k!r}", expected="a whole number", remedy="check --model_args"
            )
        found = found.top(top_k)
    own = ConditionName.parse(condition).top_k
    return found if own is None else found.top(own)


def _scales(
    condition: str, scale: float | None, suppress: float | None, enhance: float | None
) -> Scales:
    name = ConditionName.parse(condition)
    operation = only_operation(name.condition)
    if scale is not None:
        if operation is None or suppress is not None or enhance is not None:
            raise UsageError(
                f"scale={scale} with condition={condition}",
                expected="scale with a condition of one operation, and without suppress_scale or "
                "enhance_scale",
                remedy="use suppress_scale= and enhance_scale=",
            )
        if name.scale is not None:
            raise UsageError(
                f"scale={scale} with condition={condition}, which names a factor itself",
                expected="the factor in one place",
                remedy=f"leave scale out, or use condition={name.condition} with top_k and scale",
            )
        suppress = scale if operation == "suppress" else None
        enhance = scale if operation == "enhance" else None
    given = {"suppress": suppress, "enhance": enhance}
    for operation, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UsageError(
                f"the {operation} scale is {value!r}",
                expected="a number",
                remedy="check scale, suppress_scale and enhance_scale in --model_args",
            )
    scales = Scales(**{key: float(value) for key, value in given.items() if value is not None})
    return name.scales(scales)
