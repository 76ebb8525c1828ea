"""`NeuronMaskedLM`: lm-eval's Hugging Face model with a neuron mask in its forward pass.

Registered with the harness as `neuronllm`:

    --model neuronllm --model_args pretrained=M,neurons=RUN_DIR,condition=suppress_good

1. The mask is a factor for every neuron, made from a `NeuronSet` and a condition.
2. `positions=scored` edits only the positions whose logits are scored, as in the paper;
   `positions=all` edits every position, as an exported adapter does.
3. The unmasked condition registers no hook at all: results are those of `--model hf`.
4. What requests share is computed once (`shared_context_scoring`), where that is exact.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import model_registry, register_model
from torch import Tensor

from neuronllm_eval.errors import UsageError
from neuronllm_eval.export.manifest import warn_of_other_base
from neuronllm_eval.harness.tokenize import chat_template_text
from neuronllm_eval.masked_lm.mask_options import NAMES, MaskOptions
from neuronllm_eval.masked_lm.scoring import MaskedScoringLM
from neuronllm_eval.masked_lm.shared_context_scoring import Mask
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.fingerprints import (
    Weights,
    digest,
    model_hash,
    require_same_shape,
    tokenizer_hash,
)
from neuronllm_eval.models.forward_check import require_plain_forward
from neuronllm_eval.models.loading import readable_loading
from neuronllm_eval.models.model_args import require_model_args
from neuronllm_eval.prompts import ALL
from neuronllm_eval.runtime.distributed import meet, other_ranks_needed, share_docs

logger = logging.getLogger(__name__)
_CACHE_STAMP = "neuronllm_eval"
NAME = "neuronllm"  # of the model in lm_eval


def _register(model: type[MaskedScoringLM]) -> type[MaskedScoringLM]:
    """Register a model with lm_eval, unless lm_eval discovered it as a plugin and is loading it.

    Then its registry holds the entry point or its path, and compares neither with a class (0.4.13).
    """
    registered = getattr(model_registry, "_objs", {}).get(NAME)
    path = str(getattr(registered, "value", registered))
    package = model.__module__.partition(".")[0]
    if not (path.startswith(package) and path.endswith(f":{model.__qualname__}")):
        register_model(NAME)(model)
    return model


@_register
class NeuronMaskedLM(MaskedScoringLM):
    """A Hugging Face causal LM under one condition.

    Args:
        pretrained: as for `--model hf`, like every other argument not named here.
        neurons: run directory of `identify`, its `neurons.json`, or such a directory on the Hub as
            `hf://user/repo[@revision][/folder]`. Without it the model is unmasked.
        condition: one of `conditions.CONDITIONS`, a point of a sweep such as
            `suppress_good.k50.x0.5`, or either with `.random_<seed>` or `.matched_<seed>`; must be
            given with `neurons`.
        scale: the factor of the condition's only operation; for `degrade` and `enhance`, which
            have two, give `suppress_scale` and `enhance_scale`.
        suppress_scale: factor of suppressed neurons, 0 if not given.
        enhance_scale: factor of enhanced neurons, 2 if not given.
        top_k: use the first so many good and bad neurons of the set; all if not given.
        positions: `scored` or `all`.
        fast: compute once what requests share, and logits only where they are read. The answers
            are those of `--model hf` up to float rounding; False gives them to the bit.

    Raises:
        UsageError: no model, unknown condition or positions, or arguments that do not go together.
        ArtifactError: the neurons file is missing, damaged, or holds fewer than `top_k`.
        ModelError: the model cannot be loaded or has no FFN layers, or the neurons are of a model
            of another shape.
    """

    def __init__(
        self, pretrained: Any = None, neurons: Any = None, condition: Any = None, **kwargs: Any
    ) -> None:
        # Everything a user can get wrong is checked before the weights are loaded.
        if pretrained is None:
            raise UsageError(
                "--model_args names no model",
                expected="pretrained=NAME_OR_PATH",
                remedy="add pretrained= to --model_args",
            )
        mask = {name: kwargs.pop(name) for name in NAMES if name in kwargs}
        require_model_args(kwargs)
        options = MaskOptions.read(neurons, condition, **mask)
        self.options = options
        self.fast = options.fast
        if kwargs.get("tp_plan") is None:
            meet(kwargs.get("device"))
        with readable_loading(pretrained if isinstance(pretrained, str) else type(pretrained)):
            super().__init__(pretrained, **kwargs)
        if options.neurons is not None:
            layers = find_ffn_layers(self.model)
            require_same_shape(options.neurons, layers.shape, str(pretrained))
            require_plain_forward(self.model, layers)
            if Weights.of(self.model).differ(options.neurons.provenance):
                logger.warning(
                    "the neurons were found in other weights than those of %s", pretrained
                )
            factors = options.factors
            if factors is not None:
                self._mask = Mask(
                    layers.modules, torch.from_numpy(factors), options.positions == ALL
                )
        if self.peft is not None:
            warn_of_other_base(self.model, self.peft, self.revision, str(pretrained))
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

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template in use; of a name the one that prompts are then written by.

        Raises:
            UsageError: there is none of that name.
        """
        text = chat_template_text(self, chat_template)
        if isinstance(chat_template, str):  # lm_eval records the name and ignores it
            self.chat_template_args |= {"chat_template": text}
        return text

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use lm_eval's cache of answers (`--use_cache`), if they are this mask's and model's.

        The cache knows a request by its text alone, so it is stamped with whose answers it holds.

        Raises:
            UsageError: it holds answers of another mask or model.
        """
        if cache_hook.dbdict is not None:
            identity = self._identity()
            stamp = cache_hook.dbdict.get(_CACHE_STAMP)
            if stamp != identity and len(cache_hook.dbdict):
                raise UsageError(
                    "the cache of --use_cache holds answers of another model, condition or setting",
                    expected="one cache for each model and condition",
                    remedy="pass another path to --use_cache",
                )
            cache_hook.dbdict[_CACHE_STAMP] = identity
        super().set_cache_hook(cache_hook)

    def _identity(self) -> str:
        """A digest of everything that decides an answer beside the request's text."""
        identity = {
            "weights": model_hash(self.model),
            "tokenizer": tokenizer_hash(self.tokenizer),
            # Not `mask_hash`: caches of earlier versions stay in use.
            "mask": "" if self._mask is None else digest(str(self._mask.factors.numpy().tobytes())),
            "positions": "" if self._mask is None else self.options.positions,
            "max_length": self.max_length,
            "truncation": self.truncation,
            "add_bos_token": self.add_bos_token,
            "prefix_token_id": self.prefix_token_id,
            "softmax_dtype": str(self.softmax_dtype),
            "mixed_precision_dtype": str(self.mixed_precision_dtype),
        }
        return digest(json.dumps(identity, sort_keys=True))

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval's model information, plus the mask's identity."""
        info = super().get_model_info()
        info["neuronllm"] = self.options.section()
        return info
