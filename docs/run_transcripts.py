"""Run the commands of a page and insert their output.

    python docs/run_transcripts.py            # rewrite the pages
    python docs/run_transcripts.py --check    # exit code 1 and a diff if they would differ

1. A fenced `console` block begins with `$ COMMAND`; the rest is the command's standard output.
   Logs and progress bars go to standard error and are omitted.
2. The blocks of a page run one after the other in a new folder, in which `neuronllm_eval` and
   `tasks` are links to this checkout, as if it were a clone. Nothing is installed: the interpreter
   that runs this script must have the package and `peft`.
3. Pages are compared as text, so their commands must not print times, versions, absolute paths, or
   more digits than rounding on another machine leaves unchanged.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/quickstart.md",)
LINKED = ("neuronllm_eval", "tasks")
BLOCK = re.compile(r"^```console\n\$ (?P<command>.+)\n(?:.*\n)*?```$", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or check them; the exit code."""
    parser = argparse.ArgumentParser(description="Run the commands of a page.")
    parser.add_argument("pages", nargs="*", default=PAGES, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args(argv)
    n_differing = 0
    for name in options.pages:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = run_page(old)
        if not options.check:
            path.write_text(new, encoding="utf-8")
        elif old != new:
            lines = old.splitlines(True), new.splitlines(True)
            sys.stdout.writelines(difflib.unified_diff(*lines, name, f"{name}, run now"))
            n_differing += 1
    return int(n_differing > 0)


def run_page(text: str) -> str:
    """The page with the current output of its commands."""
    with tempfile.TemporaryDirectory() as folder:
        for name in LINKED:
            (Path(folder) / name).symlink_to(ROOT / name)

        def run(block: re.Match[str]) -> str:
            command = block["command"]
            return f"```console\n$ {command}\n{printed(command, Path(folder))}```"

        return BLOCK.sub(run, text)


def printed(command: str, folder: Path) -> str:
    """Standard output of a command, without trailing blanks and empty last lines.

    Raises:
        SystemExit: the command fails.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\nended with {done.returncode}:\n{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.rstrip().splitlines())


if __name__ == "__main__":
    raise SystemExit(main())
