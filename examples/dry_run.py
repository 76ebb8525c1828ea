"""docs/performance.md, docs/command-line.md: what a run will take, before it is begun."""

from __future__ import annotations

from pathlib import Path

from neuronllm_eval.cli import main as cli

flags = ["--tasks", "demo_topic", "--limit", "20", "--batch_size", "auto"]
assert cli.run_eval_main([*flags, "--output_path", "runs/not_made", "--dry_run"]) == 0
assert not Path("runs/not_made").exists()
