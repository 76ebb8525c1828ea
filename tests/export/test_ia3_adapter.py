"""Adapters and merged checkpoints against the masked model, on every architecture."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.export.ia3_adapter import (
    adapter_config,
    adapter_files,
    adapter_weights,
    ia3_site,
    require_plain_model,
    rounded_factors,
)
from neuronllm_eval.export.manifest import Export
from neuronllm_eval.export.merged_checkpoint import merge_factors, require_mergeable
from neuronllm_eval.interventions.conditions import Scales
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.hooks import scale_neurons
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet
from tests.fixtures.tiny_models import (
    CONFIGS,
    REPLAY_ONLY,
    loaded,
    provenance,
    random_model,
    relative_difference,
    tiny_model,
)

# Of transformers, about a name that PEFT uses.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ARCHITECTURES = (*CONFIGS, *REPLAY_ONLY)
IDS = torch.tensor(
    [[5, 20, 31, 8, 77, 60, 13, 42, 9, 9, 15, 3], [4, 3, 90, 33, 1, 7, 8, 6, 5, 4, 3, 2]]
)


def neurons_of(shape: tuple[int, int], dtype: str = "float32") -> NeuronSet:
    """A quarter of all neurons as good, a quarter as bad."""
    places = np.random.default_rng(0).permutation(shape[0] * shape[1]).tolist()
    k = len(places) // 4
    good, bad = (
        tuple(Neuron(place // shape[1], place % shape[1], score) for place in chosen)
        for chosen, score in ((places[:k], 1.0), (places[k : 2 * k], -1.0))
    )
    origin = provenance(dtype=dtype, model="org/base", model_revision="main")
    return NeuronSet(*shape, good, bad, k, "keep", origin)


def write_adapter(folder, model, condition="enhance", scales=None, dtype="float32") -> Tensor:
    """Write an adapter's folder; returns the factors."""
    layers = find_ffn_layers(model)
    made, factors = Export.of(
        neurons_of(layers.shape, dtype), condition, scales or Scales(), "peft"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in adapter_files(made, factors, ia3_site(model, layers)).items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
    return torch.from_numpy(factors)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def masked(model: nn.Module, factors: Tensor) -> Tensor:
    with scale_neurons(find_ffn_layers(model).modules, factors):
        return logits(model)


def with_biases(model: nn.Module) -> nn.Module:
    """Biases of the down-projections other than the zeros that they are made of."""
    for module in find_ffn_layers(model).modules:
        if isinstance(module.bias, Tensor):
            nn.init.normal_(module.bias)
    return model


def gated_with_bias() -> nn.Module:
    config = CONFIGS["llama"]()
    config.mlp_bias = True
    return with_biases(random_model(config))


MODELS = {name: lambda name=name: with_biases(tiny_model(name)) for name in ARCHITECTURES}
MODELS["llama_mlp_bias"] = gated_with_bias
MODELS |= {f"{name}_bf16": lambda make=make: make().bfloat16() for name, make in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_adapter_merge_and_mask_agree_to_the_bit(name, tmp_path):
    MODELS[name]().save_pretrained(tmp_path / "base")
    # Loaded, since casting a model casts buffers that loading does not.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    dtype = str(model.dtype).removeprefix("torch.")
    factors = write_adapter(tmp_path / "peft", model, dtype=dtype)
    unmasked, expected = logits(model), masked(model, factors)
    assert relative_difference(expected, unmasked) > 1e-2  # there is something to compare

    own = copy.deepcopy(model)
    layers = find_ffn_layers(own)
    require_mergeable(own, layers)
    merge_factors(layers, rounded_factors(factors.numpy(), dtype))
    assert torch.equal(logits(own), expected)
    own.save_pretrained(tmp_path / "merged", max_shard_size="20KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    assert not list((tmp_path / "merged").glob("*.bin"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == model.dtype
    assert torch.equal(logits(again), expected)

    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "peft"))
    assert torch.equal(logits(wrapped), expected)
    assert torch.equal(logits(wrapped.merge_and_unload()), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_factors_are_exact_as_adapter_and_round_as_weights(dtype, tmp_path):
    model = tiny_model("llama", getattr(torch, dtype))
    scales = Scales(enhance=1.3)
    factors = write_adapter(tmp_path / "peft", model, "enhance_good", scales, dtype)
    expected = masked(model, factors)
    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "peft"))
    assert torch.equal(logits(wrapped), expected)
    merged = logits(wrapped.merge_and_unload())
    assert relative_difference(merged, expected) <= {"float32": 1e-5}.get(dtype, 5e-2)
    own = tiny_model("llama", getattr(torch, dtype))
    merge_factors(find_ffn_layers(own), rounded_factors(factors.numpy(), dtype))
    assert torch.equal(logits(own), merged)  # rounded as PEFT rounds


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_the_files_are_those_that_peft_writes(name, tmp_path):
    model, layers = loaded(name)
    site = ia3_site(model, layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of PEFT, were fan_in_fan_out wrong
        wrapped = get_peft_model(
            copy.deepcopy(model),
            IA3Config(
                task_type="CAUSAL_LM",
                target_modules=list(site.targets),
                feedforward_modules=list(site.targets),
                fan_in_fan_out=site.fan_in_fan_out,
            ),
        )
    wrapped.save_pretrained(str(tmp_path))
    (tmp_path / "ours.safetensors").write_bytes(adapter_weights(site, torch.ones(layers.shape)))
    ours, theirs = (
        load_file(tmp_path / each) for each in ("ours.safetensors", "adapter_model.safetensors")
    )
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "adapter_config.json").write_text(adapter_config(site, "org/base", "main"))
    expected = IA3Config.from_pretrained(str(tmp_path)).to_dict()
    expected["base_model_name_or_path"] = "org/base"
    assert IA3Config.from_pretrained(str(tmp_path / "ours")).to_dict() == expected


def test_several_adapters_side_by_side(tmp_path):
    model = tiny_model("llama")
    good = write_adapter(tmp_path / "good", model, "suppress_good")
    bad = write_adapter(tmp_path / "bad", model, "enhance_bad")
    answers = {"good": masked(model, good), "bad": masked(model, bad)}
    answers["both"] = masked(model, good * bad)
    answers["halfway"] = masked(model, 0.25 * good + 0.75 * bad)
    unmasked = logits(model)
    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "good"), adapter_name="good")
    wrapped.load_adapter(str(tmp_path / "bad"), adapter_name="bad")
    for name in ("good", "bad", "good"):
        wrapped.set_adapter(name)
        assert torch.equal(logits(wrapped), answers[name])
    wrapped.base_model.set_adapter(["good", "bad"])
    assert torch.equal(logits(wrapped), answers["both"])
    wrapped.add_weighted_adapter(["good", "bad"], [0.25, 0.75], "halfway")
    wrapped.set_adapter("halfway")
    assert torch.equal(logits(wrapped), answers["halfway"])
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped), unmasked)


class Quantised(nn.Linear):
    """A linear layer whose weights are whole numbers, as quantisers make them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        weight = (base.weight.detach() * 16).round().to(torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, neurons: Tensor) -> Tensor:
        return nn.functional.linear(neurons, self.weight.to(neurons.dtype) / 16)


def test_quantised_weights_take_an_adapter_and_no_merge(tmp_path):
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = Quantised(layer.mlp.down_proj)
    with pytest.raises(ModelError, match=r"is quantised(.|\n)*--format peft"):
        require_mergeable(model, find_ffn_layers(model))
    factors = write_adapter(tmp_path / "peft", model)
    expected = masked(model, factors)
    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "peft"))
    assert torch.equal(logits(wrapped), expected)


def test_modules_that_peft_does_not_take():
    model = tiny_model("llama")
    for layer in model.model.layers:
        own = layer.mlp.down_proj
        layer.mlp.down_proj = nn.Module()
        layer.mlp.down_proj.in_features, layer.mlp.down_proj.weight = own.in_features, own.weight
    layers = find_ffn_layers(model)
    with pytest.raises(ModelError, match="Module modules"):
        ia3_site(model, layers)
    with pytest.raises(ModelError, match="no plain linear layer"):
        require_mergeable(model, layers)


def test_a_name_that_is_another_modules_too(tmp_path):
    model = tiny_model("opt")
    model.head = nn.ModuleDict({"fc2": nn.Linear(2, 2)})
    layers = find_ffn_layers(model)
    assert ia3_site(model, layers).targets == layers.names
    factors = write_adapter(tmp_path / "peft", model)
    expected = masked(model, factors)
    wrapped = PeftModel.from_pretrained(model, str(tmp_path / "peft"))
    assert type(wrapped.base_model.model.head["fc2"]) is nn.Linear
    assert torch.equal(logits(wrapped), expected)


def test_factors_and_products_that_do_not_fit_their_type():
    large = np.full((1, 1), 1e6, np.float32)
    assert float(rounded_factors(large, "float32")) == 1e6
    with pytest.raises(UsageError, match="float16 can hold"):
        rounded_factors(large, "float16")
    model = tiny_model("llama", torch.float16)
    layers = find_ffn_layers(model)
    with pytest.raises(ModelError, match=r"not finite(.|\n)*--format peft"):
        merge_factors(layers, torch.full(layers.shape, 6e4) * 60)


@pytest.mark.parametrize("name", ["peft", "delta"])
def test_a_model_with_an_adapter_of_its_own_is_refused(name):
    require_plain_model({"pretrained": "m"})
    with pytest.raises(ModelError, match=f"{name}='a/b' on top"):
        require_plain_model({"pretrained": "m", name: "a/b"})
