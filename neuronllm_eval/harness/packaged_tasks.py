"""Where the package's harness tasks lie: inside an installed wheel, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from neuronllm_eval.errors import ArtifactError

_PACKAGE_DIR = Path(__file__).resolve().parents[1]


def tasks_dir() -> Path:
    """The folder to give to the harness as `--include_path`.

    Raises:
        ArtifactError: if the tasks are neither in the package nor beside it.
    """
    candidates = (_PACKAGE_DIR / "tasks", _PACKAGE_DIR.parent / "tasks")
    for candidate in candidates:
        if (candidate / "demo" / "demo.yaml").is_file():
            return candidate
    raise ArtifactError(
        f"no demo/demo.yaml in {' or '.join(map(str, candidates))}",
        expected="the package's harness tasks in one of these folders",
        remedy="install neuronllm-eval again, or work in a complete checkout",
    )
