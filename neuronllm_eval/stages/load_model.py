"""Load a model as `lm_eval --model hf` does, and read its `--model_args`."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers
from neuronllm_eval.models.fingerprints import model_hash
from neuronllm_eval.models.loading import readable_loading, require_model_args
from neuronllm_eval.models.precision import dtype_name
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.distributed import share_docs


@dataclass(frozen=True)
class LoadedModel:
    """A harness model, its FFN layers, and a digest and the dtype of its weights as loaded."""

    lm: HFLM
    layers: FFNLayers
    hash: str
    dtype: str


def load_model(settings: RunSettings) -> LoadedModel:
    """Load the model as `lm_eval --model hf` does, and find its FFN layers.

    Of several processes, each loads it on its own device.

    Raises:
        ModelError: the model cannot be loaded, or has no FFN down-projections.
    """
    arguments = {**settings.model_args}
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {"batch_size": settings.batch_size, "device": device, **arguments}
    _require_device(str(given["device"]))
    require_model_args(arguments)
    with readable_loading(arguments.get("pretrained")):
        lm = HFLM(**given)
    return _loaded(lm)


def wrap_model(
    settings: RunSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> LoadedModel:
    """As `load_model`, of a model that is in memory; it stays on its device, in evaluation mode.

    Args:
        settings: of the run, whose `pretrained` names the model.
        model: as it is.
        tokenizer: of the model, of which a copy is used; the one of its folder or repository if
            not given.

    Raises:
        UsageError: the arguments ask for another device or for what only loading can do.
        ModelError: the tokenizer cannot be loaded, or the model has no FFN down-projections.
    """
    arguments = {**settings.model_args}
    require_model_args(arguments)
    name = arguments.pop("pretrained")
    given = {"batch_size": settings.batch_size, **arguments}
    with readable_loading(name):
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), **given)
    lm.pretrained = name  # as if loaded, for the result files
    return _loaded(lm)


def _loaded(lm: HFLM) -> LoadedModel:
    share_docs(lm)
    if lm.backend != "causal":
        raise ModelError(
            f"{type(lm.model).__name__} is not a causal language model",
            expected="a decoder-only model",
            remedy="choose another model",
        )
    return LoadedModel(lm, find_ffn_layers(lm.model), model_hash(lm.model), dtype_name(lm.model))


def _require_device(device: str) -> None:
    """Raise UsageError for a device that is not there; lm_eval would take another."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise UsageError(
            f"--device {device} is unknown",
            expected="cpu, cuda, cuda:0, mps or the like",
            remedy="check the spelling",
        ) from error
    counts = {"cpu": 1, "meta": 0, "cuda": torch.cuda.device_count()}
    if index >= counts.get(kind, index + 1):
        raise UsageError(
            f"--device {device} is not there",
            expected=f"a device of this machine, which has {counts['cuda']} CUDA devices",
            remedy="check --device, and CUDA_VISIBLE_DEVICES; cpu is always there",
        )


def require_trust(settings: RunSettings, trust: bool) -> None:
    """Raise UsageError if a run asks for a repository's code and the user does not."""
    if settings.model_args.get("trust_remote_code", False) is not False and not trust:
        raise UsageError(
            f"the run of {settings.task} asks to run code of the repository of its model, "
            f"{settings.model_args.get('pretrained')}",
            expected="your consent, since a run directory may come from somebody else",
            remedy="pass --trust_remote_code if you trust that repository",
        )
