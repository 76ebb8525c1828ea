"""What goes wrong while lm_eval and transformers load a model, as this package's errors.

1. Arguments of the wrong kind, which they take and stumble over later, are refused at once.
2. Whatever they raise becomes one ModelError.
3. Weights that a checkpoint lacks, which transformers fills in at random with no more than a
   warning, are refused: every later number would mean nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from neuronllm_eval.errors import ModelError, NeuronLLMError, UsageError

logger = logging.getLogger(__name__)
# Arguments whose values lm_eval does not check.
_FLAGS = ("add_bos_token", "trust_remote_code", "parallelize", "truncation", "logits_cache")
_COUNTS = {"max_length": 1, "prefix_token_id": 0}
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_REPORTER = "transformers.modeling_utils"


def require_model_args(arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for arguments of the model that can mean nothing; None is not given."""
    for name, value in arguments.items():
        if value is None:
            continue
        least = _COUNTS.get(name)
        if name in _FLAGS and not isinstance(value, bool):
            expected = "True or False"
        elif least is not None and (type(value) is not int or value < least):
            expected = f"a whole number from {least}"
        else:
            continue
        raise UsageError(
            f"{name} is {value!r:.100}", expected=expected, remedy=f"check {name} in --model_args"
        )


@contextmanager
def readable_loading(model: object) -> Iterator[None]:
    """Within the context a model is loaded.

    Args:
        model: its name or path, for error messages.

    Raises:
        ModelError: it cannot be loaded, or its checkpoint lacks weights.
    """
    try:
        with _load_reports() as reports:
            yield
    except NeuronLLMError:
        raise
    except Exception as error:  # whatever lm_eval, transformers, torch, peft and the Hub raise
        raise ModelError(
            f"the model {model!r:.300} cannot be loaded: "
            f"{str(error).strip() or type(error).__name__}",
            expected="--model_args as for `lm_eval --model hf`: pretrained=NAME_OR_PATH[,...]",
            remedy="check --model_args and --device; offline, give a local path",
        ) from error
    if unused := _named(reports, "UNEXPECTED"):
        logger.warning(
            "the checkpoint of %s has %d weights that the model does not take, such as %s",
            model,
            len(unused),
            unused[0],
        )
    if missing := _named(reports, "MISSING"):
        raise ModelError(
            f"the checkpoint of {model!r:.300} lacks {len(missing)} weights, such as {missing[0]}",
            expected="all weights of a causal language model; the others would be random",
            remedy="download it again, or check that its config.json fits its weights",
        )


@contextmanager
def _load_reports() -> Iterator[list[str]]:
    """What transformers reports of weights, which it logs as a warning and does not hand over."""
    reports: list[str] = []
    logger = logging.getLogger(_REPORTER)
    before = logger.level, logger.propagate

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reports.append(_ANSI.sub("", record.getMessage()))

    collector = Collector(logging.WARNING)
    logger.addHandler(collector)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield reports
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _named(reports: list[str], status: str) -> list[str]:
    """Names of the weights to which the reports' tables give a status."""
    rows = [line.split("|") for report in reports for line in report.splitlines() if "|" in line]
    return [row[0].strip() for row in rows if status in (cell.strip() for cell in row[1:])]
