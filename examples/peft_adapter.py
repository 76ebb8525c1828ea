"""docs/adapters.md: conditions as PEFT adapters, side by side on one model."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronllm_eval import identify
from neuronllm_eval.cli import main as cli
from neuronllm_eval.demo import MODEL_DIR

(run,) = identify(
    tasks="demo_topic", limit=20, batch_size=48, output_path="runs/adapters", overwrite=True
)
export = ["export", str(run.path), "--condition", "suppress_good", "--scale", "0.5", "--overwrite"]
assert cli.main([*export, "--output_path", "out/half"]) == 0

tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
text = tokenizer("Question: What is the topic?\nAnswer:", return_tensors="pt")
model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
with torch.no_grad():
    plain = model(**text).logits
    model = PeftModel.from_pretrained(
        model, str(run.directory.adapter("suppress_good")), adapter_name="none"
    )
    model.load_adapter("out/half", adapter_name="halved")  # side by side
    changed = {}
    for name in ("none", "halved"):
        model.set_adapter(name)
        changed[name] = float((model(**text).logits - plain).abs().max())
    model.base_model.set_adapter(["none", "halved"])  # both: their factors multiply
    both = float((model(**text).logits - plain).abs().max())
    model.add_weighted_adapter(["none", "halved"], [0.3, 0.7], "mixed")
    with model.disable_adapter():
        assert torch.equal(model(**text).logits, plain)
print("largest change of a logit:", changed, "both:", both)
assert 0 < changed["halved"] < changed["none"]
