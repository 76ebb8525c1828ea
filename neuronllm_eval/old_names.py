"""Module names of release 0.1 that users' task YAML files hold; they work for one more release."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_OLD = {
    f"neuronllm_eval.{name}" for name in ("adapter", "aqua_harness", "aqua_metrics", "aqua_task")
}


class OldNames(MetaPathFinder, Loader):
    """Makes the old modules from `task_functions` when they are imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of an old module; None for any other."""
        return ModuleSpec(fullname, self) if fullname in _OLD else None

    def exec_module(self, module: Any) -> None:
        """Fill an old module with the functions of `task_functions`."""
        from neuronllm_eval import task_functions

        warnings.warn(
            f"{module.__name__} is called neuronllm_eval.task_functions now; the old name will go "
            "with the next release",
            FutureWarning,
            stacklevel=2,
        )
        module.__dict__.update(
            {name: getattr(task_functions, name) for name in task_functions.__all__}
        )
        module.load_adapted = task_functions.load_converted
