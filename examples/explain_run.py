"""docs/explain.md: what the top neurons do, printed and as JSON."""

from __future__ import annotations

import json

from neuronllm_eval import identify
from neuronllm_eval.cli import main as cli

(run,) = identify(
    tasks="demo_topic", limit=20, batch_size=48, output_path="runs/explained", overwrite=True
)
assert cli.main(["explain", str(run.path), "--top_n", "2", "--batch_size", "48"]) == 0
explanation = json.loads(run.directory.explanation.read_text())
best = explanation["neurons"][0]
print("letters:", best["letters"]["reading"], best["letters"]["index"])
assert (best["neuron"]["layer"], best["neuron"]["index"]) == run.neurons.good[0].location
