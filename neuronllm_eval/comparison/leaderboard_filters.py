"""Which runs and conditions the leaderboard shows: patterns as of file names. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from neuronllm_eval.comparison.leaderboard import Entry, last_part
from neuronllm_eval.comparison.leaderboard_rows import BoardRun
from neuronllm_eval.errors import UsageError

# flag -> what of a run its patterns may fit.
_OF_RUNS: Mapping[str, Callable[[BoardRun], tuple[str, ...]]] = {
    "models": lambda run: (last_part(run.model), run.model),
    "tasks": lambda run: (run.task,),
    "methods": lambda run: (run.method,),
}


@dataclass(frozen=True)
class Filters:
    """Patterns; without any, all are wanted.

    Attributes:
        models: for the model's name or the last part of it.
        tasks: for the task.
        methods: for the method.
        conditions: for the condition or the name of a point.
    """

    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()

    def kept(self, runs: Sequence[BoardRun]) -> list[BoardRun]:
        """The runs that are wanted, with the entries that are.

        Raises:
            UsageError: nothing fits a pattern, or no run fits all flags together.
        """
        for flag, names_of in _OF_RUNS.items():
            self._require_use(flag, [names_of(run) for run in runs])
        entries = [each for run in runs for each in run.entries]
        self._require_use("conditions", [(each.condition, each.name) for each in entries])
        kept = [run for run in runs if self._wants(run)]
        if not kept:
            raise UsageError(
                "no run fits --models, --tasks and --methods together",
                expected="patterns that leave one",
                remedy="leave one of the flags away",
            )
        return [dataclasses.replace(run, entries=self._entries(run)) for run in kept]

    def _wants(self, run: BoardRun) -> bool:
        return all(_fits(getattr(self, flag), of(run)) for flag, of in _OF_RUNS.items())

    def _entries(self, run: BoardRun) -> tuple[Entry, ...]:
        return tuple(
            each for each in run.entries if _fits(self.conditions, (each.condition, each.name))
        )

    def _require_use(self, flag: str, there: Sequence[tuple[str, ...]]) -> None:
        for pattern in getattr(self, flag):
            if not any(_fits((pattern,), names) for names in there):
                known = sorted({names[0] for names in there})
                more = "; points need --points" if flag == "conditions" else ""
                raise UsageError(
                    f"no run has {flag} that fit {pattern!r:.100}",
                    expected=f"patterns for {', '.join(known) or 'nothing, as there are none'}",
                    remedy=f"check --{flag}{more}",
                )


def _fits(patterns: Sequence[str], names: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, each) for name in names for each in patterns)
