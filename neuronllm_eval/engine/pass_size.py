"""How much goes through the model in one pass: rows of a prompt, copies of its tree, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuronllm_eval.engine.option_tree import OptionTree
from neuronllm_eval.prompts import Prompt

# Rows of one prompt in a pass. Copies are masked from each other at the cost of attention over all
# of them, so more trees of several rows than these are no gain.
ROWS_PER_PROMPT, TREES_PER_PROMPT = 128, 12
# Rows of all prompts in a pass; of trees of several rows half as many, which took least time.
ROWS_PER_PASS = 2048
# Logits in a pass, in numbers: a large vocabulary leaves room for fewer rows.
LOGITS_PER_PASS = 2**26
# Prompts whose trees have several rows share a pass only as long as so many copies of each fit.
COPIES_AT_LEAST = 8


def tree_size(prompt: Prompt) -> int:
    """Rows of a prompt's tree."""
    return len(OptionTree.of(prompt))


def rows_per_prompt(tree_rows: int, n_nodes: int = 0) -> int:
    """How many rows of a prompt a pass has at most.

    There is room for the nodes of one layer, alpha = 0 and the unedited tree.

    Args:
        tree_rows: rows of the largest tree.
        n_nodes: of path integrals; 0 for none.
    """
    trees = TREES_PER_PROMPT if tree_rows > 1 else 1
    return max(ROWS_PER_PROMPT, max(trees, n_nodes + 2) * tree_rows)


@dataclass(frozen=True)
class PassSize:
    """The largest pass.

    Attributes:
        vocabulary: logits of a row.
        rows_per_pass: most rows over the whole batch, by which memory is bounded: but for a prompt
            whose nodes at one layer, which are never split, have more.
        rows_per_prompt: most rows of one prompt.
    """

    vocabulary: int
    rows_per_pass: int = ROWS_PER_PASS
    rows_per_prompt: int = ROWS_PER_PROMPT

    def rows(self, batch: int, tree_rows: int, *, whole_vocabulary: bool) -> int:
        """Rows of each prompt of a batch.

        Args:
            batch: prompts.
            tree_rows: rows of their trees.
            whole_vocabulary: whether logits of all tokens are read.
        """
        most = self.rows_per_pass if tree_rows == 1 else self.rows_per_pass // 2
        if whole_vocabulary:
            most = min(most, LOGITS_PER_PASS // self.vocabulary)
        return min(most // batch, self.rows_per_prompt)

    def trees(self, batch: int, tree_rows: int, *, whole_vocabulary: bool) -> int:
        """Copies of each prompt of a batch, beside one row; arguments as `rows`."""
        return (self.rows(batch, tree_rows, whole_vocabulary=whole_vocabulary) - 1) // tree_rows

    def batch(self, most: int, tree_rows: int, n_copies: int) -> int:
        """How many prompts with trees of this size go through a pass together, 1 to `most`.

        Args:
            most: prompts of the batch.
            tree_rows: rows of their trees.
            n_copies: copies of each prompt that there are.
        """
        if tree_rows == 1:
            return most
        wanted = min(n_copies, COPIES_AT_LEAST)
        fitting = (
            batch
            for batch in range(most, 1, -1)
            if self.trees(batch, tree_rows, whole_vocabulary=True) >= wanted
        )
        return next(fitting, 1)

    def groups(self, prompts: Sequence[Prompt], n_copies: int) -> list[list[int]]:
        """Indices of prompts that go through a pass together, those of trees of like size.

        Args:
            prompts: the batch.
            n_copies: as `batch`.
        """
        sizes = [tree_size(prompt) for prompt in prompts]
        groups: list[list[int]] = []
        for index in sorted(range(len(prompts)), key=sizes.__getitem__):
            size = sizes[index]
            if (
                groups
                and size <= 2 * sizes[groups[-1][0]]
                and len(groups[-1]) < self.batch(len(prompts), size, n_copies)
            ):
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups
