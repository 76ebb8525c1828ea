"""docs/api.md: identify, validate and read the results, with a model in memory."""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronllm_eval import identify, validate
from neuronllm_eval.demo import MODEL_DIR

model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
settings = {"tasks": "demo_topic", "limit": 20, "batch_size": 48, "overwrite": True}
(run,) = identify(model=model, tokenizer=tokenizer, output_path="runs/from_python", **settings)
print("best:", run.neurons.good[0])
print("questions that voted for it:", run.scores.good_count[run.neurons.good[0].place])

(run,) = validate(run, model=model, tokenizer=tokenizer, conditions="suppress_good", n_random=3)
effect = run.summaries["suppress_good"]
print(f"{effect.accuracy.delta:+.1f} points ({effect.accuracy.low:+.1f} to "
      f"{effect.accuracy.high:+.1f}); beyond {effect.n_beyond} of 3 controls")  # fmt: skip
assert effect.accuracy.delta < 0
assert run.docs.correct["suppress_good"].shape == (60,)
