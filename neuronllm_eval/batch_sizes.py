"""How many prompts go through the model together: as many as fit, and fewer when they do not.

1. The memory that a prompt needs is estimated from the model's sizes (`bytes_per_prompt`).
2. `auto` takes as many prompts as fit into half of what is free (`auto_batch_size`).
3. A batch (`work.units_of`) that runs out of memory all the same is halved, and so are all later
   ones; nothing that was computed before is lost (`in_batches`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from neuronllm_eval.architectures import FFNLayers
from neuronllm_eval.errors import ModelError
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.work import end_of_batch, units_of

logger = logging.getLogger(__name__)
AUTO = "auto"
LARGEST_BATCH = 256
# Share of the free memory that a batch may take by the estimate.
_USABLE = 0.5
Result = TypeVar("Result")


def bytes_per_prompt(model: nn.Module, layers: FFNLayers, n_tokens: int, n_rows: int) -> int:
    """About how much memory one prompt takes beside the weights.

    Keys and values of every token (twice: the prefix, and the cache that a pass extends), and of
    every row what the backward pass keeps: attention over all tokens, and the activations of each
    layer.

    Args:
        model: a Hugging Face causal LM.
        layers: its FFN down-projections.
        n_tokens: length of the prompt.
        n_rows: copies of its last token in one pass.
    """
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    width = int(config.hidden_size)
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    head_width = int(getattr(config, "head_dim", None) or width // heads)
    size = next(model.parameters()).element_size()
    cache = 2 * 2 * groups * head_width * (n_tokens + n_rows)
    activations = n_rows * (12 * width + 6 * layers.width)
    attention = 2 * n_rows * heads * (n_tokens + n_rows)
    prefill = n_tokens * (6 * width + 3 * layers.width)  # of one layer at a time
    logits = n_rows * int(config.vocab_size) * 4
    return size * (layers.n_layers * (cache + activations + attention) + prefill) + logits


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def auto_batch_size(
    model: nn.Module, layers: FFNLayers, prompts: Sequence[Prompt], n_rows: int
) -> int:
    """How many of the longest of these prompts fit, 1 to `LARGEST_BATCH`."""
    longest = max(prompt.n_tokens for prompt in prompts)
    device = next(model.parameters()).device
    needed = bytes_per_prompt(model, layers, longest, n_rows)
    fits = int(_USABLE * free_memory(device) / needed)
    size = max(1, min(LARGEST_BATCH, fits))
    logger.info("batch size %d: about %.0f MiB a prompt", size, needed / 2**20)
    return size


def in_batches(
    questions: Sequence[Question],
    batch_size: int,
    compute: Callable[[list[Prompt]], list[Result]],
    units: Iterable[range] | None = None,
) -> Iterator[tuple[int, list[Result]]]:
    """Results of every question's prompts, in order, in batches of whole questions.

    The next unit is taken when the results of the one before have all been consumed.

    Args:
        questions: what is computed.
        batch_size: about how many prompts go together; at least one question's.
        compute: gives one result for each prompt.
        units: places of the questions that go together; all of `units_of` if not given.

    Yields:
        the question's index, and its prompts' results.

    Raises:
        ModelError: not even one prompt fits into memory.
    """
    size = batch_size
    for unit in units_of(questions, batch_size) if units is None else units:
        start = unit.start
        while start < unit.stop:
            stop = end_of_batch(questions, start, unit.stop, size)
            prompts = [prompt for question in questions[start:stop] for prompt in question.prompts]
            found, largest = _halving(prompts, compute)
            if largest < len(prompts):
                size = largest
                logger.warning("out of memory; going on with about %d prompts at a time", size)
            results = iter(found)
            for index in range(start, stop):
                yield index, [next(results) for _ in questions[index].prompts]
            start = stop


def _halving(
    prompts: list[Prompt], compute: Callable[[list[Prompt]], list[Result]]
) -> tuple[list[Result], int]:
    """Results of all prompts, and the largest number of them that fitted into memory together."""
    try:
        return compute(prompts), len(prompts)
    except Exception as error:
        if not should_reduce_batch_size(error):
            raise
        if len(prompts) == 1:
            raise ModelError(
                f"out of memory with one prompt of {prompts[0].n_tokens} tokens: {error}",
                expected="room for one prompt",
                remedy="use a smaller model, dtype=bfloat16, parallelize=True in --model_args, or "
                "fewer --n_steps",
            ) from error
    # Not within the handler: it holds on to the tensors of the batch that failed.
    clear_device_cache(garbage_collection=True)
    middle = len(prompts) // 2
    first, fitted = _halving(prompts[:middle], compute)
    second, also = _halving(prompts[middle:], compute)
    return first + second, max(1, min(fitted, also))
