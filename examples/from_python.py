"""docs/api.md: identify, validate and read the results, with a model in memory."""

from __future__ import annotations

import lm_eval
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronllm_eval import NeuronMaskedLM, identify, validate
from neuronllm_eval.demo import MODEL_DIR
from neuronllm_eval.harness import tasks_dir

model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
settings = {"tasks": "demo_topic", "limit": 20, "batch_size": 48, "overwrite": True}
(run,) = identify(model=model, tokenizer=tokenizer, output_path="runs/from_python", **settings)
print("best:", run.neurons.good[0])
print("questions that voted for it:", run.scores.good_count[run.neurons.good[0].location])

(run,) = validate(run, model=model, tokenizer=tokenizer, conditions="suppress_good", n_random=3)
effect = run.summaries["suppress_good"]
print(f"{effect.accuracy.delta:+.1f} points ({effect.accuracy.low:+.1f} to "
      f"{effect.accuracy.high:+.1f}); beyond {effect.n_beyond} of 3 controls")  # fmt: skip
assert effect.accuracy.delta < 0
assert run.docs.correct["suppress_good"].shape == (60,)

lm = NeuronMaskedLM(
    pretrained=str(MODEL_DIR),
    neurons=str(run.path),
    condition="suppress_good",
    batch_size=16,
    device="cpu",
)
tasks = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
results = lm_eval.simple_evaluate(lm, tasks=["demo_topic"], task_manager=tasks, limit=60)
accuracy = results["results"]["demo_topic"]["acc,none"]
print(f"through the harness: {100 * accuracy:.1f}%")
assert accuracy == run.metrics("suppress_good")["acc"]
