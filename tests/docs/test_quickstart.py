"""docs/quickstart.md shows what its commands print."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.cli import call, stock

ROOT = Path(__file__).resolve().parents[2]


def _script() -> Any:
    path = ROOT / "docs" / "run_transcripts.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's
def test_the_quickstart_is_what_its_commands_print(monkeypatch):
    """The script runs each command in a process of its own; here they share this one."""
    transcripts = _script()

    def printed(command: str, folder: Path) -> str:
        own, _, rest = command.partition(" | ")
        program, *arguments = shlex.split(own)
        run = {"neuronllm-eval": call, "lm_eval": stock}[program]
        monkeypatch.chdir(folder)
        code, out, err = run(*arguments)
        assert code == 0, err
        if rest:
            shell = ["bash", "-c", rest]
            out = subprocess.run(shell, input=out, capture_output=True, text=True).stdout
        return "".join(f"{line.rstrip()}\n" for line in out.rstrip().splitlines())

    monkeypatch.setattr(transcripts, "printed", printed)
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert transcripts.run_page(page) == page
