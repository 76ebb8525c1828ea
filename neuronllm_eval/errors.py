"""The errors a user can cause, each saying what was found, what was expected and the remedy.

The command line prints these without a traceback and exits with a code that is not 0. Anything
else that escapes is a bug in this package.
"""

from __future__ import annotations


class NeuronLLMError(Exception):
    """Base of every error caused by input, settings or files rather than by this package.

    Args:
        found: what is wrong, naming the argument, file, task or doc at fault.
        expected: what would have been right.
        remedy: what the user can do about it.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found = found
        self.expected = expected
        self.remedy = remedy
        parts = [found]
        if expected:
            parts.append(f"Expected: {expected}")
        if remedy:
            parts.append(f"Remedy: {remedy}")
        super().__init__("\n".join(part.rstrip(".") + "." for part in parts))


class UsageError(NeuronLLMError):
    """An argument or setting is not acceptable."""

    exit_code = 2


class DocError(NeuronLLMError):
    """A doc of a benchmark cannot be used as a multiple-choice question.

    Args:
        found: as `NeuronLLMError`.
        expected: as `NeuronLLMError`.
        remedy: as `NeuronLLMError`.
        reason: a few words under which docs that are skipped for it are counted.
    """

    def __init__(
        self, found: str, *, expected: str = "", remedy: str = "", reason: str = "unusable"
    ) -> None:
        super().__init__(found, expected=expected, remedy=remedy)
        self.reason = reason


class TaskError(NeuronLLMError):
    """A task is unknown or of a kind this package cannot use."""


class ArtifactError(NeuronLLMError):
    """A file of a run directory is missing, damaged or belongs to something else."""


class ModelError(NeuronLLMError):
    """The model has no part this package can work on, or the wrong shape."""
