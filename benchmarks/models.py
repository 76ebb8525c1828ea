"""Which causal language models of the installed transformers work, and with which engine.

    python -m benchmarks.models

For a tiny random model of every type in `AutoModelForCausalLM`: are its FFN down-projections found,
which engine is exact for it, and does the path of integrated gradients differ from one step (where
the FFN's output is normalised it does not, see docs/method.md). Types that lm_eval loads as
encoder-decoders are refused. A type whose configuration cannot be made small by its usual keys is
listed as not tried.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from neuronllm_eval.attribution.integrated_gradients import Quantity, attribute_all
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import option_cross_entropy
from neuronllm_eval.errors import ModelError
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from tests.fixtures.tiny_models import random_prompt, relative_difference

_SMALL = {
    "vocab_size": 160,
    "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Other words for the same.
    **{"n_embd": 32, "d_model": 32, "word_embed_proj_dim": 32},
    **{"n_inner": 48, "ffn_hidden_size": 48, "ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"n_layer": 3, "n_layers": 3, "num_layers": 3, "decoder_layers": 3},
    **{"n_head": 4, "n_heads": 4, "decoder_attention_heads": 4},
    **{"n_positions": 512, "rotary_dim": 8},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4},
}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_OWN: dict[str, dict[str, Any]] = {
    "gemma3": {"mm_tokens_per_image": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
}
_MOST_PARAMETERS = 5e7  # what is larger has something that was not made small
ENCODER_DECODER = "loaded as an encoder-decoder by lm_eval"
_HEADS = ("model", "engine", "down-projections", "path")


@dataclasses.dataclass(frozen=True)
class Tried:
    """The result for one model type; where it does not work, `engine` is the reason."""

    kind: str
    engine: str
    down_projections: str = ""
    path: str = ""

    @property
    def works(self) -> bool:
        """Whether there is an engine for it."""
        return bool(self.down_projections)


class NotSmallError(Exception):
    """The model could not be made small."""


def _of(config: type, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that a configuration has; all, where its class does not tell."""
    if config is transformers.AutoConfig:
        return dict(sizes)
    known = {name for each in config.__mro__ for name in getattr(each, "__annotations__", ())}
    known |= set(inspect.signature(config.__init__).parameters)
    known |= set(getattr(config, "attribute_map", {}) or {})
    return {name: size for name, size in sizes.items() if name in known}


def _configs(kind: str) -> Iterator[transformers.PretrainedConfig]:
    """Small configurations, the most likely first: some types compute the size of their heads."""
    config = CONFIG_MAPPING[kind]
    for left_out in ((), ("head_dim",), ("head_dim", "num_key_value_heads")):
        sizes = {name: size for name, size in _SMALL.items() if name not in left_out}
        values = {**_of(config, sizes), **_OWN.get(kind, {})}
        parts: Mapping[str, type] = getattr(config, "sub_configs", {}) or {}
        for part, of_part in parts.items():
            if "text" in part:
                values[part] = _of(of_part, sizes)
            elif "vision" in part or "audio" in part:
                values[part] = _of(of_part, _TOWER)
        try:
            yield config(**values)
        except Exception:  # noqa: BLE001 - what this configuration refuses, the next may not have
            continue


def small_model(kind: str) -> nn.Module:
    """A tiny random model of this type that runs.

    Raises:
        NotSmallError: none of the configurations tried gives one.
    """
    for config in _configs(kind):
        torch.manual_seed(0)
        try:
            config.get_text_config().initializer_range = 0.3
            with torch.device("meta"):
                weightless = transformers.AutoModelForCausalLM.from_config(config)
            if sum(each.numel() for each in weightless.parameters()) > _MOST_PARAMETERS:
                continue
            model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
            with torch.no_grad():
                model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
        except Exception:  # noqa: BLE001 - whatever an invalid configuration raises
            continue
        return model.requires_grad_(False)
    raise NotSmallError(kind)


def try_kind(kind: str) -> Tried:
    """Find the neurons of a tiny model of this type and attribute them."""
    if kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:  # `HFLM` looks there first
        return Tried(kind, ENCODER_DECODER)
    try:
        model = small_model(kind)
    except NotSmallError:
        return Tried(kind, "not tried")
    prompts = [random_prompt(number, 12 + 4 * number) for number in range(3)]
    try:
        layers = find_ffn_layers(model)
    except ModelError as error:
        return Tried(kind, str(error).split("\n")[0].removesuffix("."))
    engine = build_engine(model, layers, prompts, n_nodes=5)
    rule = Quadrature("gauss_legendre", 4)
    nodes, weights = rule.rule()
    along, at_once = (Quantity(option_cross_entropy, path=path) for path in (True, False))
    found = attribute_all(engine, prompts, rule, [along, at_once])
    multiple = float((weights / nodes).sum())
    is_multiple = all(
        relative_difference(
            each.by_quantity[along].values, multiple * each.by_quantity[at_once].values
        )
        < 1e-2
        for each in found
    )
    path = layers.names[0].replace(".0.", ".N.", 1)
    return Tried(kind, engine.name, path, "as one step" if is_multiple else "")


def table(tried: Sequence[Tried]) -> str:
    """Those that work, as markdown."""
    rows = [list(dataclasses.astuple(each)) for each in tried if each.works]
    return markdown_table(list(_HEADS), rows)


def main() -> None:
    """Print the table, and what is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="model types; all by default")
    kinds = parser.parse_args().kinds or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tried = [try_kind(kind) for kind in tqdm(kinds, disable=None)]
    print(f"transformers {transformers.__version__}; {sum(map(lambda t: t.works, tried))} work")
    print(table(tried))
    for each in tried:
        if not each.works:
            print(f"{each.kind}: {each.engine}")


if __name__ == "__main__":
    main()
