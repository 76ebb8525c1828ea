"""How compared runs are called: by as much as tells them from each other. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from neuronllm_eval.compared import Key


class Names:
    """Names of models, tasks and methods.

    Args:
        keys: of all runs that are named together.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.several_models = len({key.model for key in keys}) > 1
        self._alike = _differing((_short(key), key.model) for key in keys)
        self._splits = _differing((_task(key), key.split) for key in keys)
        self._settings = _varying(keys, lambda key: key.method, lambda key: key.settings)
        self._terms = _varying(keys, _task, lambda key: key.terms)

    def model(self, key: Key) -> str:
        """The end of a model's name, with the digest of its weights where another has it too."""
        name = _short(key)
        return f"{name} ({key.model[1].rsplit(':', 1)[-1][:8]})" if name in self._alike else name

    def task(self, key: Key) -> str:
        """A task, with its split where several judged."""
        return f"{key.task} ({key.split})" if _task(key) in self._splits else key.task

    def method(self, key: Key) -> str:
        """A method, with the settings and terms in which runs differ."""
        told = [pair for pair in key.settings if (key.method, pair[0]) in self._settings]
        told += [pair for pair in key.terms if (_task(key), pair[0]) in self._terms]
        return " ".join([key.method, *(f"{name}={value}" for name, value in told)])


def _short(key: Key) -> str:
    return key.model[0].rstrip("/").rsplit("/", 1)[-1]


def _task(key: Key) -> Hashable:
    return key.model, key.task


def _varying(
    keys: Sequence[Key],
    group: Callable[[Key], Hashable],
    named: Callable[[Key], tuple[tuple[str, str], ...]],
) -> set[Hashable]:
    """(group, name) of the names whose value differs within a group of keys."""
    return _differing(((group(key), name), value) for key in keys for name, value in named(key))


def _differing(pairs: Iterable[tuple[Hashable, Hashable]]) -> set[Hashable]:
    """The first of each pair that stands with several others."""
    found: dict[Hashable, set[Hashable]] = {}
    for first, second in pairs:
        found.setdefault(first, set()).add(second)
    return {first for first, others in found.items() if len(others) > 1}
