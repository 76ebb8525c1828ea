"""One run as the leaderboard sees it: its files, read and checked to be of one validation.

No figure is computed anew, and of `conditions.jsonl` only the start of each line is read, so that
a hundred runs take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronllm_eval.comparability import Terms
from neuronllm_eval.conditions import UNMASKED, ConditionName, Scales
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.fingerprints import digest, task_hash
from neuronllm_eval.leaderboard import Entry
from neuronllm_eval.neurons import NeuronSet
from neuronllm_eval.run_directory import (
    MOST_LINE_LENGTH,
    MOST_LINES_BYTES,
    RunDirectory,
    read_lines,
)
from neuronllm_eval.set_overlap import Places
from neuronllm_eval.settings import RunSettings
from neuronllm_eval.stored_run import ValidationRecord, load_neurons
from neuronllm_eval.stored_summary import StoredSummary
from neuronllm_eval.strict_json import exact_keys, parse_json, read_json, require_file, require_size
from neuronllm_eval.summary import ConditionSummary

_AGAIN = "run validate again"
# What `validate` writes between what was asked and what was answered.
_ANSWERS = b',"loglikelihoods":{'
# Settings of a run that a method has besides its own.
_METHOD_SETTINGS = ("quadrature", "n_steps", "top_z", "ambiguous", "attribution_dtype")


@dataclass(frozen=True)
class BoardRun:
    """A run.

    Attributes:
        path: its directory.
        model: as the run names it.
        model_hash: digest of its weights.
        task: of the harness.
        method: that chose the neurons.
        seed: of the questions.
        shape: the model's [layers, neurons].
        places: the `good` and the `bad` neurons that were chosen.
        entries: of its conditions and points; none before validation.
        lacks: what is to be done before it has entries; empty where it has.
    """

    path: str
    model: str
    model_hash: str
    task: str
    method: str
    seed: int
    shape: tuple[int, int]
    places: Mapping[str, Places]
    entries: tuple[Entry, ...]
    lacks: str


def read_run(run: RunDirectory, with_points: bool = False) -> BoardRun:
    """Read a run.

    Args:
        run: its directory.
        with_points: whether points of a sweep are entries too.

    Raises:
        ArtifactError: a file is missing or damaged, or files are of different validations.
    """
    settings = RunSettings.load(run.settings)
    neurons = load_neurons(run, settings)
    lacks = ""
    if not (run.conditions.exists() or run.summary.exists()):
        lacks = "validate"
    elif not run.summary.exists():
        lacks = "report"
    known = neurons.provenance
    entries = () if lacks else _entries(run, settings, neurons)
    return BoardRun(
        path=str(run.path),
        model=known.model,
        model_hash=known.model_hash,
        task=settings.task,
        method=known.method,
        seed=known.seed,
        shape=neurons.shape,
        places={
            kind: Places.of(getattr(neurons, kind), neurons.n_layers) for kind in ("good", "bad")
        },
        entries=tuple(each for each in entries if with_points or each.name == each.condition),
        lacks=lacks,
    )


def _entries(run: RunDirectory, settings: RunSettings, neurons: NeuronSet) -> tuple[Entry, ...]:
    record = ValidationRecord.load(run.validation)
    record.judged(neurons, run.validation)
    summary = StoredSummary.load(run.summary)
    asked = _asked(run.conditions, settings.task)
    _require_one_validation(run, settings, record, summary, asked)
    terms = _terms(run, settings, neurons, record, asked)
    unmasked = summary.metrics.get(UNMASKED, {})
    method = {name: getattr(settings, name) for name in _METHOD_SETTINGS} | settings.method_args
    known = neurons.provenance
    found = []
    for each in summary.conditions:
        parts = ConditionName.parse(each.name)
        scales = parts.scales(record.scales)
        count = parts.top_k or record.top_k
        chosen = neurons.top(count)
        metrics = summary.metrics[each.name]
        found.append(
            Entry(
                model=known.model,
                model_hash=known.model_hash,
                dtype=known.dtype,
                task=settings.task,
                method=known.method,
                method_settings=json.dumps(method, sort_keys=True),
                seed=known.seed,
                condition=each.condition,
                name=each.name,
                top_k=each.top_k,
                scale=each.scale,
                n_good=len(chosen.good),
                n_bad=len(chosen.bad),
                n_questions=each.accuracy.n_questions,
                n_docs=each.accuracy.n_docs,
                accuracy=each.accuracy.condition,
                **_change(each),
                consistent=_percent(metrics.get("acc_consistent")),
                consistent_delta=_delta("acc_consistent", metrics, unmasked, each),
                position_bias=_percent(metrics.get("position_bias")),
                position_bias_delta=_delta("position_bias", metrics, unmasked, each),
                majority=_percent(metrics.get("acc_majority")),
                run=str(run.path),
                terms=Terms(
                    **terms,
                    top_k=count,
                    suppress=float(scales.suppress),
                    enhance=float(scales.enhance),
                ),
            )
        )
    return tuple(found)


def _change(summary: ConditionSummary) -> dict[str, Any]:
    """What the unmasked run has none of: a delta, its tests, and a place among controls."""
    accuracy, controls = summary.accuracy, summary.controls
    if summary.name == UNMASKED or summary.corrected is None:
        names = ("delta", "low", "high", "p_value", "p_holm", "controls_outdone", "n_controls",
                 "control_p")  # fmt: skip
        return dict.fromkeys(names)
    has_controls = controls is not None and controls.n_controls > 0
    return {
        "delta": accuracy.delta,
        "low": accuracy.low,
        "high": accuracy.high,
        "p_value": accuracy.p_value,
        "p_holm": summary.corrected.p_value,
        "controls_outdone": summary.n_beyond if has_controls else None,
        "n_controls": controls.n_controls if has_controls and controls else None,
        "control_p": controls.p_value if has_controls and controls else None,
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _delta(
    name: str,
    metrics: Mapping[str, float],
    unmasked: Mapping[str, float],
    summary: ConditionSummary,
) -> float | None:
    if summary.name == UNMASKED or name not in metrics or name not in unmasked:
        return None
    return 100 * (metrics[name] - unmasked[name])


@dataclass(frozen=True)
class _Asked:
    """What was asked, of `conditions.jsonl`.

    Attributes:
        split: that judged.
        docs: (id of the question, gold option) of each, in order.
        conditions: names of the conditions and points, random controls aside.
    """

    split: str
    docs: tuple[tuple[str, int], ...]
    conditions: tuple[str, ...]


def _asked(path: Path, task: str) -> _Asked:
    require_file(path)
    require_size(path, MOST_LINES_BYTES, _AGAIN)
    splits, docs, first = set(), [], b""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE_LENGTH), b""), 1):
                start, sign, _ = line.partition(_ANSWERS)
                if not sign or not line.endswith(b"}}\n"):
                    raise _damaged(path, f"line {number} is not whole")
                values = _start(start, path, number)
                if values["task"] != task:
                    raise _damaged(path, f"line {number} is of task {values['task']!r:.100}")
                splits.add(values["split"])
                docs.append((values["question_id"], values["gold"]))
                first = first or line
    except OSError as error:
        raise _damaged(path, str(error)) from error
    if len(splits) != 1:
        raise _damaged(path, f"there are docs of {len(splits)} splits")
    answers = parse_json(first.decode("utf-8", "replace"), path, _AGAIN)["loglikelihoods"]
    return _Asked(splits.pop(), tuple(docs), tuple(n for n in answers if ".random_" not in n))


def _start(start: bytes, path: Path, number: int) -> dict[str, Any]:
    """The keys of a line before the answers, which are not read."""
    where = f"{path}, line {number},"
    values = parse_json(start.decode("utf-8", "replace") + "}", where, _AGAIN)
    kinds = {"task": str, "split": str, "doc_id": int, "question_id": str, "gold": int}
    known = exact_keys(values, set(kinds), path, f"line {number}", _AGAIN)
    for name, kind in kinds.items():
        if type(known[name]) is not kind:
            raise _damaged(path, f"line {number} has {name} {known[name]!r:.100}")
    return known


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {what}",
        expected="a file written by `neuronllm-eval validate`",
        remedy=_AGAIN,
    )


def _require_one_validation(
    run: RunDirectory,
    settings: RunSettings,
    record: ValidationRecord,
    summary: StoredSummary,
    asked: _Asked,
) -> None:
    """Refuse a summary that other files contradict, and names that are no conditions."""
    n_questions = len({question for question, _ in asked.docs})
    judged = (settings.task, asked.split, record.positions, asked.conditions)
    told = (summary.task, summary.split, summary.applied_at, tuple(summary.metrics))
    same = told == judged and UNMASKED in summary.metrics
    for each in summary.conditions:
        try:
            parts = ConditionName.parse(each.name)
        except UsageError as error:
            raise ArtifactError(
                f"{run.summary}: {error.found}", expected=error.expected, remedy=_AGAIN
            ) from error
        count = None if each.name == UNMASKED else parts.top_k or record.top_k
        same = same and (each.condition, each.top_k) == (parts.condition, count)
        same = same and each.scale in (None, *_factors(parts, record.scales))
        n_judged = (each.accuracy.n_docs, each.accuracy.n_questions)
        same = same and n_judged == (len(asked.docs), n_questions)
    if not same:
        raise ArtifactError(
            f"{run.summary} is not of what {run.validation.name} and {run.conditions.name} hold",
            expected="files of one validation",
            remedy=f"run `neuronllm-eval report {run.path}`",
        )


def _factors(parts: ConditionName, scales: Scales) -> tuple[float, float]:
    own = parts.scales(scales)
    return float(own.suppress), float(own.enhance)


def _terms(
    run: RunDirectory,
    settings: RunSettings,
    neurons: NeuronSet,
    record: ValidationRecord,
    asked: _Asked,
) -> dict[str, Any]:
    """The terms that all of a run's conditions and points have in common."""
    known, how = neurons.provenance, record.docs.get("asked", {})
    config, lm_eval = _harness(run, settings.task)
    template = settings.apply_chat_template
    return {
        "split": asked.split,
        "n_questions": len({question for question, _ in asked.docs}),
        "question_ids": digest(json.dumps(sorted({question for question, _ in asked.docs}))),
        "docs": digest(json.dumps(asked.docs)),
        "n_proxies": known.n_proxies,
        **{
            name: str(how.get(name) or "")
            for name in ("orders", "letter_style", "n_options", "distractors")
        },
        "num_fewshot": known.num_fewshot,
        "description": digest(str(config.pop("description", ""))),
        "system_instruction": digest(settings.system_instruction or ""),
        "chat_template": template
        if isinstance(template, str)
        else ("the model's own" if template else "no"),
        "multiturn": settings.fewshot_as_multiturn or not template,
        "metadata": digest(json.dumps(settings.metadata, sort_keys=True, default=str)),
        "task_config": task_hash(config),
        "chosen_split": known.split,
        "n_chosen_on": known.n_questions,
        "chosen_at": known.positions,
        "applied_at": record.positions,
        "lm_eval": lm_eval,
        "neuronllm_eval": _version(run) or known.tool_version,
    }


def _harness(run: RunDirectory, task: str) -> tuple[dict[str, Any], str]:
    """The task's configuration when it judged, demonstrations aside, and lm_eval's version."""
    path = run.result(UNMASKED)
    values = read_json(path, _AGAIN)
    configs = values.get("configs") if isinstance(values, dict) else None
    config = configs.get(task) if isinstance(configs, dict) else None
    if not isinstance(config, dict):
        raise ArtifactError(
            f"{path} has no configuration of task {task}",
            expected="a result file that this package wrote",
            remedy=_AGAIN,
        )
    kept = {name: value for name, value in config.items() if name != "num_fewshot"}
    return kept, str(values.get("lm_eval_version"))


def _version(run: RunDirectory) -> str:
    """This package's version at the last validation; empty where the run does not say it."""
    if not run.commands.is_file():
        return ""
    found = [
        line.get("versions") for line in read_lines(run.commands) if line.get("stage") == "validate"
    ]
    versions = found[-1] if found else None
    return str(versions.get("neuronllm-eval", "")) if isinstance(versions, dict) else ""
