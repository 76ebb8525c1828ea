"""Settings of the whole test run, made before anything that reads them is imported."""

from __future__ import annotations

import gc
import logging
import os
import sys

# No test may need the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Read when torch is first imported: tests run in parallel processes, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples every time, and none refused for a slow moment of the machine.
settings.register_profile("neuronllm", deadline=None, derandomize=True)
# For --hypothesis-profile: other examples every time, and many.
settings.register_profile("fuzz", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile("neuronllm")
# No test cuts the power: waiting for the disk would be half of a small run's time.
os.fsync = lambda handle: None


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--faults N`: how many faults `test_faults.py` injects."""
    parser.addoption("--faults", type=int, default=20, help="faults injected by test_faults.py")


def pytest_collection_finish() -> None:
    """What is imported by now stays: garbage collection need not go through it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many faults this process injected, for `make reliability`."""
    fixtures = sys.modules.get("tests.fixtures.faults")
    if fixtures is not None and fixtures.INJECTED:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(fixtures.INJECTED.items()))
        terminalreporter.write_line(f"{fixtures.INJECTED.total()} faults injected: {kinds}")


@pytest.fixture(autouse=True, scope="session")
def _computed_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Only where tests have imported the harness."""
    if "lm_eval" in sys.modules:
        from tests.fixtures import computed_once

        folder = tmp_path_factory.getbasetemp()
        is_worker = "PYTEST_XDIST_WORKER" in os.environ  # then there is a folder of all workers
        computed_once.install(folder.parent if is_worker else folder)


@pytest.fixture(autouse=True)
def _log_levels_as_at_the_start() -> None:
    """The command line sets log levels for its whole process, which here is that of all tests."""
    for name in (None, "lm_eval", "neuronllm_eval", "neuronllm_eval.engine.batching"):
        logging.getLogger(name).setLevel(logging.NOTSET if name else logging.WARNING)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_warning()
        transformers_logging.enable_progress_bar()
