"""docs/results.md, docs/comparison.md: methods on the same questions, at equal K."""

from __future__ import annotations

import json
from pathlib import Path

from neuronllm_eval.cli import main as cli

flags = ["--tasks", "demo_topic", "--limit", "15", "--batch_size", "48", "--top_k", "20"]
more = ["--method", "ace,random", "--conditions", "degrade,enhance", "--overwrite"]
assert cli.main(["compare-methods", *flags, *more, "--output_path", "runs/methods"]) == 0
rows = json.loads(Path("runs/methods/comparison.json").read_text())["rows"]
assert {row["method"] for row in rows} == {"ace", "random"}

board = ["compare", "runs/methods", "--rank", "--output_path", "runs/board.csv"]
assert cli.main(board) == 0
assert "degrade" in Path("runs/board.csv").read_text()
