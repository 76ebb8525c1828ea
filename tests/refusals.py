"""The form of a refusal: what was found, what was expected, and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from neuronllm_eval.errors import UsageError


def assert_refused(call: Callable[[], object], parts: Sequence[str]) -> None:
    """`call` raises a UsageError that says all of `parts`."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    for part in (*parts, "Expected: ", "Remedy: "):
        assert part in message
