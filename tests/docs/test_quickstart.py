"""docs/quickstart.md shows what its commands print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # six commands, each in a process of its own
def test_the_quickstart_is_what_its_commands_print():
    script = [sys.executable, str(ROOT / "docs" / "run_transcripts.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
