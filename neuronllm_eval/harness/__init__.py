"""The only code that knows lm_eval's private interfaces: tasks, requests, tokenisation, results.

Read first: `tasks.py`.
"""

from __future__ import annotations

from pathlib import Path

from neuronllm_eval.errors import ArtifactError

_PACKAGE = Path(__file__).resolve().parents[1]


def tasks_dir() -> Path:
    """The packaged tasks, for the harness's `--include_path`: in the wheel, or beside the package.

    Raises:
        ArtifactError: they are in neither place.
    """
    candidates = (_PACKAGE / "tasks", _PACKAGE.parent / "tasks")
    for candidate in candidates:
        if (candidate / "demo" / "demo.yaml").is_file():
            return candidate
    raise ArtifactError(
        f"no demo/demo.yaml in {' or '.join(map(str, candidates))}",
        expected="the package's harness tasks in one of these folders",
        remedy="reinstall neuronllm-eval, or work in a complete checkout",
    )
