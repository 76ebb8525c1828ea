"""Models whose forward pass hooks and scoring would misread are refused, not attributed wrongly."""

from __future__ import annotations

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.forward_check import require_gradients, require_plain_forward
from tests.fixtures.cli import assert_one_message, call, identify, without_the_harness_tasks
from tests.fixtures.harness import model_dir

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # PEFT's


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


class Detached(nn.Linear):
    """Has no gradient after its first pass, as weights that a kernel packs for inference."""

    packed = False

    def forward(self, values):
        output = super().forward(values.detach() if self.packed else values)
        self.packed = self.packed or not torch.is_grad_enabled()
        return output


def refused(check, model) -> str:
    with pytest.raises(ModelError) as caught:
        check(model, find_ffn_layers(model))
    return str(caught.value)


def test_an_ordinary_model_passes():
    model = llama()
    layers = find_ffn_layers(model)
    require_plain_forward(model, layers)
    require_gradients(model, layers)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_down_projection_that_runs_twice_in_one_pass():
    model = llama()
    first = model.model.layers[0]
    plain = first.mlp.forward
    first.mlp.forward = lambda values: plain(plain(values))
    message = refused(require_plain_forward, model)
    assert "model.layers.0.mlp.down_proj 2 times in one pass" in message


def test_a_down_projection_that_never_runs():
    model = llama()
    model.model.layers[1].mlp.forward = lambda values: values
    assert "model.layers.1.mlp.down_proj never" in refused(require_plain_forward, model)


def test_a_down_projection_over_some_tokens():
    model = llama()
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda values: torch.cat([plain(values[:, :2]), values[:, 2:]], dim=1)
    assert "over 4 rows in one pass" in refused(require_plain_forward, model)


def test_virtual_tokens_before_the_prompt():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    message = refused(require_plain_forward, get_peft_model(llama(), config).eval())
    assert "logits of shape (2, 10, 32)" in message
    assert "prompt tuning" in message


def test_virtual_keys_and_values_do_no_harm():
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
    model = get_peft_model(llama(), config).eval()
    require_plain_forward(model, find_ffn_layers(model))


def test_a_forward_that_takes_ids_alone():
    model = llama()
    plain = model.forward
    model.forward = lambda input_ids: plain(input_ids)
    assert "use_cache" in refused(require_plain_forward, model)


def test_weights_without_gradients():
    model = llama()
    mlp = model.model.layers[0].mlp
    mlp.down_proj = Detached(24, 16, bias=False)
    require_plain_forward(model, find_ffn_layers(model))
    assert "no gradients of its logits by its neurons" in refused(require_gradients, model)
    with pytest.raises(ModelError, match="no gradients"):
        build_engine(model, find_ffn_layers(model), [], "replay", n_nodes=2)


def test_identify_refuses_an_adapter_with_virtual_tokens(tmp_path, monkeypatch):
    without_the_harness_tasks(monkeypatch)
    base = LlamaForCausalLM.from_pretrained(model_dir())
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(base, config).save_pretrained(tmp_path / "prompt")
    arguments = f"pretrained={model_dir()},peft={tmp_path / 'prompt'}"
    result = call(*identify(tmp_path / "runs", "--model_args", arguments))
    assert_one_message(result, 1, "logits of shape", "virtual tokens")
    assert not (tmp_path / "runs" / "demo_topic").exists()
