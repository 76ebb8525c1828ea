"""The first stage of a run: find a task's good and bad neurons.

1. Runs of several methods share one pass over the questions; finished ones are kept.
2. The engine, the quadrature and the batch size are settled (`prepare.prepare_identification`).
3. Runs of other settings are refused; then the work is started or resumed.
4. Every question is attributed and added to the sums, with checkpoints in between.
5. The first rank writes each method's scores, neurons and adapters (`write_identified`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

from neuronllm_eval.attribution.identify import (
    IdentificationSettings,
    Sums,
    empty_sums,
    identify,
    tally_of,
)
from neuronllm_eval.errors import DocError
from neuronllm_eval.harness.tasks import is_aqua
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.models.fingerprints import versions
from neuronllm_eval.models.hooks import computing_in
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import load_neurons
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.checkpoint import Part
from neuronllm_eval.runtime.resumable_work import Launch, SharedWork, Work, close, recorded_work
from neuronllm_eval.stages.cost_estimate import Estimate, Stage, estimate_if_long
from neuronllm_eval.stages.load import LoadedModel, doc_counts
from neuronllm_eval.stages.prepare import prepare_identification
from neuronllm_eval.stages.resume import (
    identity,
    keeps_neurons,
    record_excluded,
    without_excluded,
)
from neuronllm_eval.stages.write_identified import (
    MethodRun,
    write_neurons,
    write_questions,
    write_scores,
)

logger = logging.getLogger(__name__)
_METHODS = "methods"  # in the identity of a pass
# Below this many questions the log warns, in selection and in validation.
FEW_QUESTIONS = 30
# Receives beforehand what a long stage will take.
Announce = Callable[[Estimate], object]


def identify_task(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    runs: Sequence[MethodRun],
    launch: Launch,
    announce: Announce | None = None,
) -> list[NeuronSet]:
    """The neurons of several methods, from one pass over the questions.

    Args:
        model: whose neurons.
        settings: of the run; each method's own are its `MethodRun`'s.
        questions: of the selection split.
        runs: at least one. The directory of the first that is left holds the checkpoint.
        launch: the processes, and what becomes of existing runs.
        announce: receives beforehand what a long stage will take.

    Raises:
        UsageError: a directory holds a run or unfinished work of other settings.
    """
    with computing_in(model.lm.model, settings.attribution_dtype):
        indices = launch.ranks.on_first(lambda: _left(runs, launch.overwrite))
        left = [runs[index] for index in indices]
        home = (left or runs)[0].run
        how, stage = prepare_identification(
            model,
            settings,
            questions,
            home.path,
            [each.method for each in left or runs],
            recorded=launch.recorded_batch_size(home.identifying),
            ranks=launch.ranks,
        )
        resolved = _resolved(settings, how, questions)
        _require_same(model, resolved, questions, runs, left, launch)
        if left:
            work = _open(model, resolved, questions, left, stage, launch)
            announce_if_long(stage, announce, launch)
            sums = empty_sums(stage.engine, questions.questions, how.methods)
            with work.units(f"identify {settings.task}", lambda: tally_of(sums)) as units:
                for question, record in identify(
                    stage.engine, questions.questions, how, sums, units
                ):
                    if isinstance(record, DocError):
                        record_excluded(question, record, settings, work)
                    else:
                        work.record(dataclasses.asdict(record))
            finished = work.finish()
            if finished is not None:
                or_none = len(runs) > 1
                _write(model, resolved, questions, left, stage, sums, finished, or_none)
            launch.ranks.wait()
        return [load_neurons(each.run, each.settings(settings)) for each in runs]


def _left(runs: Sequence[MethodRun], overwrite: bool) -> list[int]:
    """Indices of the runs whose neurons are to be found; first the one with the checkpoint.

    An interrupted pass is resumed for all its methods. Finished runs are kept.
    """
    for home, holder in enumerate(runs):
        recorded = None if overwrite else recorded_work(holder.run.identifying)
        if recorded is not None:
            names = recorded.identity.get(_METHODS, {holder.method.name: {}})
            others = [
                index
                for index, each in enumerate(runs)
                if index != home and (each.method.name in names or not each.run.neurons.is_file())
            ]
            return [home, *others]
    return [index for index, each in enumerate(runs) if overwrite or not each.run.neurons.is_file()]


def _resolved(
    settings: RunSettings, how: IdentificationSettings, questions: QuestionSet
) -> RunSettings:
    """The settings, with what the task and the model decided where the user left it open."""
    changes: dict[str, Any] = {
        "quadrature": how.quadrature.name,
        "n_steps": how.quadrature.n_steps,
        "num_fewshot": questions.num_fewshot,
    }
    if not is_aqua(questions.task):  # whose name of the split says nothing about the data set's
        changes["selection_split"] = questions.split
    return settings.model_copy(update=changes)


def _require_same(
    model: LoadedModel,
    resolved: RunSettings,
    questions: QuestionSet,
    runs: Sequence[MethodRun],
    left: Sequence[MethodRun],
    launch: Launch,
) -> None:
    """Refuse finished runs of other settings."""
    finished = [each for each in runs if each not in left]
    launch.ranks.on_first(
        lambda: [
            keeps_neurons(each.run, each.settings(resolved), model, questions) for each in finished
        ]
    )


def _open(
    model: LoadedModel,
    resolved: RunSettings,
    questions: QuestionSet,
    left: Sequence[MethodRun],
    stage: Stage,
    launch: Launch,
) -> SharedWork:
    """Start the runs, or resume them. Everything that could be refused has been."""
    warn_of_few(questions, "select the neurons; expect unstable scores")
    made_of = identity(model, left[0].settings(resolved), questions, stage.engine)
    made_of[_METHODS] = {each.method.name: dataclasses.asdict(each.method) for each in left}
    plan = Work.plan(made_of, questions.questions, stage.batch_size)
    home = left[0].run
    if launch.ranks.is_first and not launch.resumes(plan, home.identifying):
        for each in left:
            launch.locks.take([each.run.path])
            each.run.start()
    work = SharedWork(plan, home.identifying, launch)
    if launch.ranks.is_first:
        for each in left:
            each.run.note_command("identify", launch.command, launch.ranks.n_ranks, versions())
        _write_settings(left[0], resolved, questions)
    return work


def _write(
    model: LoadedModel,
    resolved: RunSettings,
    questions: QuestionSet,
    left: Sequence[MethodRun],
    stage: Stage,
    sums: Sums,
    finished: Part,
    or_none: bool,
) -> None:
    """The files of every method's run; of the first last: it says that all are written."""
    records = list(finished.records())
    for each in reversed(left):
        name = each.method.name
        counted = without_excluded(records, each.run, "selection")
        gaps, notes = write_questions(counted, name, each.run)
        largest = max((gap for gap in gaps if gap is not None), default=0.0)
        total = sums[name].of(finished.tally, largest, f"{name}/")
        scores = write_scores(model, resolved, questions, stage, each, total, notes)
        context = questions.prompts[0].context
        write_neurons(model, scores, resolved, each, context=context, or_none=or_none)
        _write_settings(each, resolved, questions)  # from now on it is a run of its own
    close(left[0].run.identifying)


def _write_settings(each: MethodRun, resolved: RunSettings, questions: QuestionSet) -> None:
    written, docs = each.settings(resolved).without_secrets(), doc_counts(questions)
    each.run.write(each.run.settings, written.to_yaml(versions(), docs), (written, docs))


def announce_if_long(stage: Stage, announce: Announce | None, launch: Launch) -> None:
    """Announce what a stage will take, if it takes long; the first process does for all."""
    if announce is not None and launch.ranks.is_first:
        expected = estimate_if_long(stage)
        if expected is not None:
            announce(expected)


def warn_of_few(questions: QuestionSet, what: str) -> None:
    """Log a warning that so few questions `what`."""
    if len(questions.questions) < FEW_QUESTIONS:
        task = questions.task.config.task
        logger.warning("%s: only %d questions %s", task, len(questions.questions), what)
