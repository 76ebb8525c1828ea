"""How many prompts go through the model together: as many as fit, and fewer when they do not.

1. The memory that a batch needs is estimated from the model's sizes (`batch_bytes`).
2. `auto` takes as many prompts as fit into half of what is free (`auto_batch_size`).
3. A batch that runs out of memory all the same is halved, and so are all later ones; nothing that
   was computed before is lost (`in_batches`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from neuronllm_eval.engine.pass_size import PassSize, rows_per_prompt
from neuronllm_eval.engine.replay import SEQUENCES_PER_PASS, TOKENS_PER_PASS
from neuronllm_eval.errors import ModelError
from neuronllm_eval.models.ffn_layers import FFNLayers, text_config
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runtime.resumable_work import end_of_batch, units_of

logger = logging.getLogger(__name__)
AUTO = "auto"
LARGEST_BATCH = 256
# Share of the free memory that a batch may take by the estimate.
_USABLE = 0.5


# The memory that a batch needs ------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What a pass over a batch of prompts holds, as far as memory goes.

    Attributes:
        n_copies: copies of each prompt's tree: those of every layer if gradients are taken, else
            the conditions.
        gradients: whether it is one of attribution.
        whole_prompts: whether whole prompts go through the model instead of copies of their last
            tokens, with gradients at alpha = 1 alone.
        tree_rows: rows of the largest tree (`option_tree`).
        compares_logits: whether a pass with gradients over trees of one row needs the logits of the
            options' tokens alone (`Prompt.compares_logits`).
    """

    n_copies: int
    gradients: bool
    whole_prompts: bool = False
    tree_rows: int = 1
    compares_logits: bool = True

    @property
    def _whole_vocabulary(self) -> bool:
        return self.tree_rows > 1 or not self.gradients or not self.compares_logits

    def rows(self, n_layers: int, batch_size: int, vocabulary: int = 1) -> list[int]:
        """[layers] rows of one prompt that go through each layer, in the largest pass.

        As the fan-out engine splits them up: of attribution, copies join where they are edited.
        """
        size = self._size(vocabulary)
        batch = size.batch(batch_size, self.tree_rows, self._n_copies(n_layers))
        whole = self._whole_vocabulary
        if not self.gradients:
            n_rows = size.rows(batch, self.tree_rows, whole_vocabulary=whole)
            n_copies = min(self.n_copies, max(1, n_rows // self.tree_rows))
            return [n_copies * self.tree_rows] * n_layers
        n_trees = size.trees(batch, self.tree_rows, whole_vocabulary=whole)
        last = max(1, min(n_trees // max(1, self.n_copies), n_layers))
        of_layer = self.n_copies * self.tree_rows
        return [1 + of_layer * min(layer, last) for layer in range(1, n_layers + 1)]

    def batch(self, n_layers: int, batch_size: int, vocabulary: int = 1) -> int:
        """How many of the prompts share a pass."""
        return self._size(vocabulary).batch(batch_size, self.tree_rows, self._n_copies(n_layers))

    def _size(self, vocabulary: int) -> PassSize:
        n_nodes = self.n_copies if self.gradients else 0
        return PassSize(vocabulary, rows_per_prompt=rows_per_prompt(self.tree_rows, n_nodes))

    def _n_copies(self, n_layers: int) -> int:
        return self.n_copies * (n_layers if self.gradients else 1)


class _Sizes(NamedTuple):
    """What decides the memory of a pass, in numbers rather than bytes.

    Attributes:
        activations: of one token in one layer.
        cached: keys and values of one token in one layer.
        repeated: further keys and values of one token, where heads share them.
        attention: attention weights of each query and key, where they are stored as a matrix.
        vocabulary: logits of a row.
        n_bytes: of a number.
    """

    activations: int
    cached: int
    repeated: int
    attention: int
    vocabulary: int
    n_bytes: int

    @classmethod
    def of(cls, model: nn.Module, layers: FFNLayers) -> _Sizes:
        config = text_config(model)
        width, heads = int(config.hidden_size), int(config.num_attention_heads)
        groups = int(getattr(config, "num_key_value_heads", None) or heads)
        head_width = int(getattr(config, "head_dim", None) or width // heads)
        eager = getattr(config, "_attn_implementation", None) == "eager"
        return cls(
            activations=6 * width + 3 * layers.width,
            cached=2 * groups * head_width,
            repeated=2 * heads * head_width if groups < heads else 0,
            attention=2 * heads if eager else 0,
            vocabulary=int(config.vocab_size),
            n_bytes=next(model.parameters()).element_size(),
        )

    def layer(self, n_queries: int, n_keys: int) -> int:
        """What one layer computes for a sequence, besides the cached keys and values."""
        attention = self.repeated * n_keys + self.attention * n_queries * n_keys
        return self.activations * n_queries + attention


def batch_bytes(
    model: nn.Module, layers: FFNLayers, n_tokens: int, batch_size: int, passes: Pass
) -> int:
    """About how much memory a batch takes in the fan-out engine, beside the weights.

    The larger of prefilling, which has one layer's activations beside the keys and values that it
    makes, and of the pass over copies, which has these keys and values, those of the cache that it
    extends, and one layer's activations; with gradients, what the backward pass needs of all.

    Args:
        model: a Hugging Face causal LM.
        layers: its FFN down-projections.
        n_tokens: length of the prompts.
        batch_size: how many of them.
        passes: what a pass holds.
    """
    sizes = _Sizes.of(model, layers)
    prefill = layers.n_layers * sizes.cached * n_tokens + sizes.layer(n_tokens, n_tokens)
    together = passes.batch(layers.n_layers, batch_size, sizes.vocabulary)
    rows = passes.rows(layers.n_layers, batch_size, sizes.vocabulary)
    computed = [sizes.layer(n_rows, n_tokens + n_rows) for n_rows in rows]
    copies = sum(sizes.cached * (2 * n_tokens + n_rows) for n_rows in rows)
    copies += sum(computed) if passes.gradients else max(computed)
    # Of letters, the head gives gradients for the options' tokens alone; of texts, and of letters
    # whose log-likelihoods are divided by different lengths, logits of all tokens are kept with
    # their exponentials and their gradients.
    if passes.tree_rows > 1 or (passes.gradients and not passes.compares_logits):
        copies += sizes.vocabulary * (3 if passes.gradients else 2) * max(rows)
    else:
        copies += sizes.vocabulary * (1 if passes.gradients else max(rows))
    before = layers.n_layers * sizes.cached * n_tokens * (batch_size - together)
    return sizes.n_bytes * max(batch_size * prefill, together * copies + before)


def replay_bytes(
    model: nn.Module, layers: FFNLayers, n_tokens: int, passes: Pass, batch_size: int = 1
) -> int:
    """About how much memory a pass of the replay engine takes, beside the weights.

    Args:
        model: a Hugging Face causal LM.
        layers: its FFN down-projections.
        n_tokens: length of the prompts.
        passes: what a pass holds.
        batch_size: prompts; they go one by one, unless a pass has whole ones.
    """
    sizes = _Sizes.of(model, layers)
    wanted = batch_size if passes.whole_prompts else passes.n_copies
    n_rows = max(1, min(SEQUENCES_PER_PASS, TOKENS_PER_PASS // n_tokens, wanted))
    n_held = layers.n_layers if passes.gradients else 1
    row = n_held * sizes.layer(n_tokens, n_tokens)
    row += n_tokens * sizes.vocabulary * (2 if passes.gradients else 1)
    return n_rows * sizes.n_bytes * row


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def auto_batch_size(
    model: nn.Module, layers: FFNLayers, prompts: Sequence[Prompt], passes: Pass
) -> int:
    """How many of the longest of these prompts fit, 1 to `LARGEST_BATCH`."""
    longest = max(prompt.n_tokens for prompt in prompts)
    room = _USABLE * free_memory(next(model.parameters()).device)

    def needed(size: int) -> int:
        if passes.whole_prompts:
            return replay_bytes(model, layers, longest, passes, size)
        return batch_bytes(model, layers, longest, size, passes)

    largest = SEQUENCES_PER_PASS if passes.whole_prompts else LARGEST_BATCH
    size = next((n for n in range(largest, 1, -1) if needed(n) <= room), 1)
    logger.info("batch size %d: about %.0f MiB", size, needed(size) / 2**20)
    return size


# Batches that fit -------------------------------------------------------------------------------


class HasTokens(Protocol):
    """A prompt, or anything else that goes through the model as a sequence."""

    @property
    def n_tokens(self) -> int:
        """Its length."""
        ...


Item = TypeVar("Item", bound=HasTokens)
Result = TypeVar("Result")


def in_batches(
    questions: Sequence[Question],
    batch_size: int,
    compute: Callable[[list[Prompt]], list[Result]],
    units: Iterable[range] | None = None,
) -> Iterator[tuple[int, list[Result]]]:
    """Results of every question's prompts, in order, in batches of whole questions.

    The next unit is taken when the results of the one before have all been consumed.

    Args:
        questions: all of the split.
        batch_size: about how many prompts go together; at least one question's.
        compute: gives one result for each prompt.
        units: indices of the questions that go together; all of `units_of` if not given.

    Yields:
        the question's index, and its prompts' results.

    Raises:
        ModelError: not even one prompt fits into memory.
    """
    fits: int | None = None  # how many prompts do, once memory has run out
    for unit in units_of(questions, batch_size) if units is None else units:
        start = unit.start
        while start < unit.stop:
            stop = end_of_batch(questions, start, unit.stop, fits or batch_size)
            prompts = [prompt for question in questions[start:stop] for prompt in question.prompts]
            size = fits or len(prompts)
            results, fitting = compute_what_fits(prompts, size, compute)
            fits = fits if fitting == size else fitting
            of_questions = iter(results)
            for index in range(start, stop):
                yield index, [next(of_questions) for _ in questions[index].prompts]
            start = stop


def batched(
    items: Sequence[Item], size: int, compute: Callable[[list[Item]], list[Result]]
) -> Iterator[tuple[Item, Result]]:
    """Every item with its result, in batches of `size`, smaller ones once memory has run out."""
    start = 0
    while start < len(items):
        batch = list(items[start : start + size])
        results, size = compute_what_fits(batch, size, compute)
        yield from zip(batch, results, strict=True)
        start += len(batch)


def compute_what_fits(
    items: list[Item], size: int, compute: Callable[[list[Item]], list[Result]]
) -> tuple[list[Result], int]:
    """Results of all items, `size` at a time; half as many whenever memory runs out.

    Returns:
        the results; how many items fit into memory together, `size` if it did not run out. A
        warning is logged otherwise.

    Raises:
        ModelError: not even one item fits.
    """
    results: list[Result] = []
    while len(results) < len(items):
        batch = items[len(results) : len(results) + size]
        try:
            results += compute(batch)
            continue
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            if len(batch) == 1:
                raise ModelError(
                    f"out of memory with one prompt of {batch[0].n_tokens} tokens: {error}",
                    expected="room for one prompt",
                    remedy="use a smaller model, dtype=bfloat16, parallelize=True in --model_args, "
                    "or fewer --n_steps",
                ) from error
        # Not within the handler: it holds on to the tensors of the batch that failed.
        clear_device_cache(garbage_collection=True)
        size = len(batch) // 2
        logger.warning("out of memory; continuing with about %d prompts at a time", size)
    return results, size
