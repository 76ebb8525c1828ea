"""Loading a model, with what goes wrong in lm_eval and transformers as this package's errors.

1. Whatever they raise becomes one ModelError.
2. Weights that are missing from a checkpoint, which transformers initialises at random with no more
   than a warning, are refused: every later number would be meaningless.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neuronllm_eval.errors import ModelError, NeuronLLMError

if TYPE_CHECKING:  # checking arguments needs neither torch nor transformers
    from torch import nn

logger = logging.getLogger(__name__)
_CONFIG_ARGS = ("revision", "trust_remote_code", "subfolder", "gguf_file")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def readable_loading(model: object) -> Iterator[None]:
    """Within the context a model is loaded.

    Args:
        model: its name or path, for error messages.

    Raises:
        ModelError: it cannot be loaded, or weights are missing from its checkpoint.
    """
    try:
        with _collected_warnings("transformers.modeling_utils") as warnings:
            yield
    except NeuronLLMError:
        raise
    except ImportError as error:
        raise _not_installed(model, error) from error
    except Exception as error:  # whatever lm_eval, transformers, torch, peft and the Hub raise
        raise ModelError(
            f"the model {model!r:.300} cannot be loaded: "
            f"{str(error).strip() or type(error).__name__}",
            expected="--model_args as for `lm_eval --model hf`: pretrained=NAME_OR_PATH[,...]",
            remedy="check --model_args and --device; offline, give a local path",
        ) from error
    if unused := _weights_with_status(warnings, "UNEXPECTED"):
        logger.warning(
            "the checkpoint of %s has %d weights that the model does not use, such as %s",
            model,
            len(unused),
            unused[0],
        )
    if missing := _weights_with_status(warnings, "MISSING"):
        raise ModelError(
            f"the checkpoint of {model!r:.300} is missing {len(missing)} weights, such as "
            f"{missing[0]}",
            expected="all weights of a causal language model; the others would be random",
            remedy="download it again, or check that its config.json fits its weights",
        )


def _not_installed(model: object, error: ImportError) -> ModelError:
    """The error for a package that this kind of model needs."""
    reason = str(error).strip() or type(error).__name__
    if "gguf" in reason.lower():
        return ModelError(
            f"the model {model!r:.300} is in a GGUF file, and there is no package to read it: "
            f"{reason}",
            expected="the package gguf, from version 0.10",
            remedy="pip install 'neuronllm-eval[gguf]', or pip install gguf",
        )
    return ModelError(
        f"the model {model!r:.300} cannot be loaded: {reason}",
        expected="all packages that the model needs",
        remedy="install what the message names, or check --model_args",
    )


@contextmanager
def _collected_warnings(name: str) -> Iterator[list[str]]:
    """Warnings of a library's logger, which are not shown: it reports weights in no other way."""
    messages: list[str] = []
    library_logger = logging.getLogger(name)
    level, propagate = library_logger.level, library_logger.propagate

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(_ANSI.sub("", record.getMessage()))

    collector = Collector(logging.WARNING)
    library_logger.addHandler(collector)
    library_logger.setLevel(logging.WARNING)
    library_logger.propagate = False
    try:
        yield messages
    finally:
        library_logger.removeHandler(collector)
        library_logger.setLevel(level)
        library_logger.propagate = propagate


def _weights_with_status(warnings: list[str], status: str) -> list[str]:
    """Names of the weights to which transformers' tables in these warnings give a status."""
    lines = [line for warning in warnings for line in warning.splitlines() if "|" in line]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row[0] for row in rows if status in row[1:]]


def model_skeleton(model_args: Mapping[str, Any]) -> nn.Module:
    """The causal language model of `--model_args` without its weights, on the meta device.

    Raises:
        ModelError: its configuration cannot be read.
    """
    import torch
    import transformers

    # Without an answer transformers would ask on the terminal.
    given = {"trust_remote_code": False}
    given |= {name: model_args[name] for name in _CONFIG_ARGS if model_args.get(name) is not None}
    with readable_loading(model_args.get("pretrained")):
        config = transformers.AutoConfig.from_pretrained(model_args["pretrained"], **given)
        trust = given["trust_remote_code"]
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
