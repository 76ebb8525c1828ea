"""Activations, gradients and masks stay where their layer is; no code names a device of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch.utils._python_dispatch import TorchDispatchMode

import neuronllm_eval
from neuronllm_eval.attribution.integrated_gradients import attribute
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.fan_out import FanOutEngine
from neuronllm_eval.engine.shared_prefix import MaskStyle
from neuronllm_eval.masked_lm.shared_context_scoring import Fork, ForkScorer, Mask
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from tests.fixtures.tiny_models import (
    assert_same_scores,
    proxies,
    random_scales,
    random_tokens,
    tiny_model,
)

PACKAGE = Path(neuronllm_eval.__file__).parent
# These choose a device for the user, or ask what a device has.
MAY_NAME = {"loading.py", "ranks.py", "demo/train.py"}
PROMPTS = [*proxies(0, random_tokens(1, 9), [4, 5, 6]), *proxies(5, random_tokens(2, 8), [3, 4])]
NO_GPU = "needs a CUDA device beside the CPU, and this machine has none"


def named_devices(tree: ast.AST) -> list[str]:
    """Calls that send something to a device by its name."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        named = [
            value.value
            for value in [*node.args, *(keyword.value for keyword in node.keywords)]
            if isinstance(value, ast.Constant) and isinstance(value.value, str)
        ]
        device = any(name.split(":")[0] in ("cuda", "mps", "xpu", "npu") for name in named)
        if called.endswith(".cuda") or (device and called.split(".")[-1] in ("to", "device")):
            found.append(ast.unparse(node))
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if keywords.get("device") in ("'cuda'", "'cpu'", "'mps'"):
            found.append(ast.unparse(node))
    return found


def test_no_code_sends_a_tensor_to_a_device_by_name():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name not in MAY_NAME:
            assert named_devices(ast.parse(path.read_text())) == [], name


def test_the_search_finds_what_it_looks_for():
    for line in ("x.cuda()", "x.to('cuda:1')", "torch.zeros(3, device='cpu')", "x.to('mps')"):
        assert named_devices(ast.parse(line)) == [line]
    assert named_devices(ast.parse("x.to(y.device); torch.zeros(3, device=x.device)")) == []


class Elsewhere(TorchDispatchMode):
    """Fails where an operation mixes a tensor of rank 1 or more from the CPU into meta ones."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [
            each
            for each in torch.utils._pytree.tree_leaves((args, kwargs or {}))
            if isinstance(each, torch.Tensor) and each.dim() > 0
        ]
        devices = {each.device.type for each in tensors}
        moving = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if len(devices) > 1 and not moving:
            raise AssertionError(f"{func} mixes {sorted(devices)}")
        return func(*args, **(kwargs or {}))


def test_a_pass_on_another_device_makes_nothing_on_this_one():
    # The meta device computes no values, but refuses tensors of others as a GPU does.
    model = tiny_model("llama").to("meta")
    layers = find_ffn_layers(model)
    engine = FanOutEngine(model, layers, contexts=[prompt.context for prompt in PROMPTS])
    passed = []
    model.lm_head.register_forward_hook(lambda *args: passed.append(args[-1].shape))
    with Elsewhere(), pytest.raises(NotImplementedError, match="meta"):
        engine.score(PROMPTS, random_scales(layers.shape))  # until its numbers are read
    assert len(passed) == 1
    mask = Mask(layers.modules, random_scales(layers.shape)[2], all_positions=False)
    forks = [Fork(prompt.context, ((5,), (6, 7))) for prompt in PROMPTS]
    scorer = ForkScorer(model, MaskStyle.SINGLE, forks, mask=mask)
    with Elsewhere(), pytest.raises(NotImplementedError, match="meta"):
        scorer.score(forks)
    assert len(passed) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_a_model_split_over_gpu_and_cpu_gives_the_same():
    whole = tiny_model("llama")
    layers = find_ffn_layers(whole)
    scales = random_scales(layers.shape)
    expected = build_engine(whole, layers, PROMPTS).score(PROMPTS, scales)
    attributed = attribute(build_engine(whole, layers, PROMPTS), PROMPTS, Quadrature())
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 0, "lm_head": 0}
    places |= {"model.layers.0": 0, "model.layers.1": "cpu", "model.layers.2": 0}
    model = dispatch_model(tiny_model("llama"), places, main_device=0)
    own = find_ffn_layers(model)
    engine = build_engine(model, own, PROMPTS)
    assert_same_scores(engine.score(PROMPTS, scales), expected, 1e-4)
    for one, other in zip(attribute(engine, PROMPTS, Quadrature()), attributed, strict=True):
        torch.testing.assert_close(one.values.cpu(), other.values, rtol=1e-3, atol=1e-5)
