"""docs/artifacts.md: a run's files, read with nothing of this package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

from neuronllm_eval import identify, validate

(made,) = identify(
    tasks="demo_topic", limit=20, batch_size=48, output_path="runs/artifacts", overwrite=True
)
validate(made, conditions="suppress_good", n_random=3)

run = Path("runs/artifacts/demo_topic")
settings = yaml.safe_load((run / "run.yaml").read_text())["settings"]
neurons = json.loads((run / "neurons.json").read_text())
scores = load_file(run / "scores.safetensors")
best = neurons["good"][0]
print(f"{settings['method']} of {neurons['provenance']['n_questions']} questions: best {best}")
assert scores["score"][best["layer"], best["index"]] == best["score"] == scores["score"].max()

docs = [json.loads(line) for line in (run / "conditions.jsonl").read_text().splitlines()]
accuracy = {
    condition: np.mean([np.argmax(doc["loglikelihoods"][condition]) == doc["gold"] for doc in docs])
    for condition in docs[0]["loglikelihoods"]
}
print({condition: f"{100 * share:.1f}%" for condition, share in accuracy.items()})
result = json.loads((run / "results" / "suppress_good.json").read_text())
assert result["results"]["demo_topic"]["acc,none"] == accuracy["suppress_good"]
