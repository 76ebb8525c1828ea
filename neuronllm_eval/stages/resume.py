"""What a repeated command does with existing run directories, and with questions that fail.

An interrupted stage is resumed, a finished one is kept; either is refused if it was made with other
settings.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.errors import ArtifactError, DocError, UsageError
from neuronllm_eval.evaluation.doc_table import doc_table
from neuronllm_eval.harness.option_lengths import AUTO
from neuronllm_eval.interventions.condition_plan import ConditionPlan
from neuronllm_eval.interventions.conditions import ConditionName
from neuronllm_eval.interventions.score_conditions import DocScores
from neuronllm_eval.models.fingerprints import digest, versions
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.prompts import Question
from neuronllm_eval.runs.artifacts import (
    ExcludedQuestion,
    excluded_ids,
    load_neurons,
    load_settings,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import ComputeSettings, RunSettings
from neuronllm_eval.runtime.resumable_work import Launch, SharedWork, is_unfinished, other_settings
from neuronllm_eval.stages.load import MethodRun, StageInput, prompt_settings

logger = logging.getLogger(__name__)
# Filled in from the task or from other settings where the user leaves them open.
_RESOLVED = (
    *("quadrature", "n_steps", "layer_nodes"),
    *("selection_split", "num_fewshot", "option_scores"),
)
# Settings that say where something lies, which has digests of its own; and such digests.
_PLACES = ("include_path", "device", "validation_prompts")


# Before the model is loaded ---------------------------------------------------------------------


def refuse_before_work(
    runs: Sequence[tuple[RunDirectory, RunSettings]], validating: bool, launch: Launch
) -> None:
    """Refuse run directories that cannot be used, before anything is loaded. Changes nothing.

    Args:
        runs: the directories, and the settings as the user gave them.
        validating: whether the command goes on to validate.
        launch: whether what is there may be replaced, or finished runs are kept.

    Raises:
        UsageError: a directory cannot be written, or holds a run of other settings; or all hold
            finished runs, and the user did not say to keep them.
        ArtifactError: a folder is where a file belongs, or the other way round.
    """
    for run, _ in runs:
        run.require_writable()
        run.require_places()
    if launch.overwrite:
        return
    for run, settings in runs:
        if run.settings.exists():
            now = _comparable(settings)
            left_open = {name for name in _RESOLVED if now[name] in (None, AUTO)}
            if "quadrature" in left_open:
                left_open.add("n_steps")
            for name in left_open:
                del now[name]
            _require_equal(run, now, _comparable(load_settings(run)))
    something_left = launch.keep or any(_is_left(run, validating) for run, _ in runs)
    for run, _ in runs:
        # What something that keeps no checkpoints left unfinished cannot be resumed.
        is_foreign = not run.neurons.is_file() and not is_unfinished(run.identifying)
        if run.settings.exists() and (is_foreign or not something_left):
            raise UsageError(
                f"{run.path} already holds a run",
                expected="a new or empty directory",
                remedy="pass another --output_path, or --overwrite",
            )


def _is_left(run: RunDirectory, validating: bool) -> bool:
    """Whether something is left to do in a run directory that is this package's."""
    if not run.neurons.is_file() or is_unfinished(run.identifying) or not run.is_listed():
        return True
    return validation_is_left(run) if validating else not run.report.is_file()


def validation_is_left(run: RunDirectory) -> bool:
    """Whether a run with neurons has yet to be validated, or to be reported on."""
    validated = run.conditions.is_file() and not is_unfinished(run.validating)
    is_reported = run.summary.is_file() and (run.home is not None or run.report.is_file())
    return not (validated and is_reported)


def _comparable(settings: RunSettings) -> dict[str, Any]:
    """The settings that decide numbers: where the weights and the tasks lie does not matter."""
    settings = settings.without_secrets()
    values = settings.model_dump(mode="json", exclude=set(_PLACES))
    values["model_args"].pop("pretrained", None)
    return values


def _require_equal(run: RunDirectory, now: dict[str, Any], stored: dict[str, Any]) -> None:
    differing = {name: (now[name], stored[name]) for name in now if now[name] != stored[name]}
    if differing:
        raise other_settings(run.path, differing)


# What decides the numbers -----------------------------------------------------------------------


def identity(inputs: StageInput, engine: Engine) -> dict[str, Any]:
    """Everything that decides the numbers of a stage but its prompts, by the names users know."""
    model = inputs.model
    return {
        **_comparable(inputs.settings),
        "model_hash": model.weights.hash,
        "dtype": str(model.lm.model.dtype),
        "device": str(model.lm.device.type),
        "engine in use": engine.name,
        "task_hash": inputs.task_hash,
        **{f"version of {name}": version for name, version in versions().items()},
    }


def validation_identity(
    inputs: StageInput, engine: Engine, plan: ConditionPlan, neurons: NeuronSet
) -> dict[str, Any]:
    """The same of a validation, whose neurons and prompts say what the task resolved."""
    values = identity(inputs, engine)
    return {
        **{name: value for name, value in values.items() if name not in _RESOLVED},
        "conditions": plan.names,
        "scales": dataclasses.asdict(plan.scales),
        "positions": plan.positions,  # where they are applied; the neurons say where selected
        "neurons": digest(neurons.to_json()),
        # Checkpoints of versions that kept less of a doc cannot be completed.
        "kept of docs": [field.name for field in dataclasses.fields(DocScores)],
    }


# Finished stages --------------------------------------------------------------------------------


def require_same_neurons(runs: Sequence[MethodRun], inputs: StageInput) -> None:
    """Refuse finished runs whose neurons were identified with other settings.

    Raises:
        UsageError: names what differs.
    """
    for run, settings in [(one.run, one.settings(inputs.settings)) for one in runs]:
        stored = load_settings(run)
        _require_equal(run, _comparable(settings), _comparable(stored))
        both = settings.validation_prompts.keys() & stored.validation_prompts.keys()
        prompts, before = (
            {
                f"prompt of validation doc {doc_id}": one.validation_prompts[doc_id]
                for doc_id in both
            }
            for one in (settings, stored)
        )
        _require_equal(run, prompts, before)
        provenance = load_neurons(run, settings).provenance
        now = {"model_hash": inputs.model.weights.hash, "task_hash": inputs.task_hash}
        _require_equal(run, now, {name: getattr(provenance, name) for name in now})
        logger.warning("%s: neurons already identified with the same settings; skipping", run.path)


def keeps_validation(
    run: RunDirectory, names: Sequence[str], how: dict[str, Any], inputs: StageInput
) -> bool:
    """Whether a run is validated already, under the same conditions and on the same docs.

    A validation that cannot be read counts as none.

    Args:
        run: of the neurons.
        names: all conditions and controls.
        how: the content of validation.json, except the batch size, which may differ.
        inputs: with the questions of the validation split.

    Raises:
        UsageError: it was validated otherwise; names what differs.
    """
    if is_unfinished(run.validating) or not run.conditions.is_file():
        return False
    questions = inputs.questions
    try:
        before = None if run.home is None else load_settings(run)
        stored = dataclasses.asdict(load_validation(run))
        del stored["batch_size"]
        table = doc_table(run, str(questions.task.config.task))
        counted = questions.without(excluded_ids(run, "validation")).questions
    except ArtifactError as error:
        logger.warning(
            "%s: validating again, since the earlier validation cannot be read: %s",
            run.path,
            error.found,
        )
        return False
    doc_ids = [prompt.doc_id for question in counted for prompt in question.prompts]
    now = {**how, **_by_flag(names), "docs asked": doc_ids}
    stored |= {**_by_flag(table.conditions), "docs asked": list(table.doc_ids)}
    _require_equal(run, now, stored)
    _require_equal(run, {"conditions": list(names)}, {"conditions": list(table.conditions)})
    if before is not None:  # no identification has noted how the other task asks
        _require_equal(run, _asked(inputs.settings), _asked(before))
    logger.warning("%s: already validated under the same conditions; skipping", run.path)
    return True


def _asked(settings: RunSettings) -> dict[str, Any]:
    """What decides the prompts of a validation on another task, and digests of the first."""
    values = _comparable(settings)
    computation = ComputeSettings.model_fields
    how = {name: value for name, value in values.items() if name not in computation}
    return {**how, "validation_prompts": settings.validation_prompts}


def _by_flag(names: Sequence[str]) -> dict[str, Any]:
    """What is scored, by the flags that ask for it."""
    conditions = [ConditionName.parse(name) for name in names]
    controls = [condition for condition in conditions if condition.seed is not None]
    seeds = [control.seed for control in controls if control.seed is not None]
    return {
        "conditions": [str(condition) for condition in conditions if condition.seed is None],
        "n_random": len(set(seeds)),
        "seed": min(seeds, default=None),
        "match_controls": ", ".join(sorted({control.match for control in controls})),
    }


# Questions that give NaN or infinity --------------------------------------------------------------


def record_excluded(
    question: Question, error: DocError, settings: RunSettings, work: SharedWork
) -> None:
    """Record a question that gives NaN or infinity, or let it end the run if the user says so.

    Raises:
        DocError: the question's, with `--on_bad_doc fail`.
    """
    if prompt_settings(settings).on_bad_doc == "fail":
        raise error
    doc_ids = tuple(prompt.doc_id for prompt in question.prompts)
    excluded = ExcludedQuestion(question.question_id, doc_ids, error.reason)
    work.record({"set_aside": dataclasses.asdict(excluded)})


def without_excluded(
    records: Iterable[dict[str, Any]], run: RunDirectory, role: str
) -> list[dict[str, Any]]:
    """The records of questions that count; the others go to a file of their own, if there are any.

    Raises:
        DocError: none counts.
    """
    all_records = list(records)
    counted = [record for record in all_records if "set_aside" not in record]
    excluded = [
        ExcludedQuestion(**{**line, "doc_ids": tuple(line["doc_ids"])})
        for line in (record["set_aside"] for record in all_records if "set_aside" in record)
    ]
    if excluded:
        logger.warning(
            "%s: %d questions of the %s split give %s and are excluded, such as question %s",
            run.path, len(excluded), role, excluded[0].reason, excluded[0].question_id,
        )  # fmt: skip
        run.write(run.set_aside(role), map(dataclasses.asdict, excluded), excluded)
    if not counted:
        raise DocError(
            f"{run.path}: every question of the {role} split gives NaN or infinite numbers",
            expected="finite log-likelihoods and gradients",
            remedy="load the model in float32 or bfloat16 (--model_args dtype=float32), or use "
            "smaller scales; then pass --overwrite",
        )
    return counted
