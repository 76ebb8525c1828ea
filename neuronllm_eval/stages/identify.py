"""The first stage of a run: find a task's neurons, and write what they were found by."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence

from neuronllm_eval.attribution.identify import empty_sums, identify, tally_of
from neuronllm_eval.attribution.methods import make_method
from neuronllm_eval.errors import DocError
from neuronllm_eval.formats.atomic import write_whole
from neuronllm_eval.harness.tasks import is_aqua
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.models.fingerprints import versions
from neuronllm_eval.models.precision import computing_in
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import load_neurons
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.runtime.resumable_work import Launch, SharedWork, batch_size_of, close
from neuronllm_eval.runtime.work_units import WORK_FILE, Work, recorded_identity
from neuronllm_eval.stages.cost_estimate import Estimate, Stage, estimate_if_long
from neuronllm_eval.stages.load_model import LoadedModel
from neuronllm_eval.stages.load_questions import doc_counts
from neuronllm_eval.stages.non_finite_questions import set_aside, without_set_aside
from neuronllm_eval.stages.prepare import prepare_identification
from neuronllm_eval.stages.resume import identity, keeps_neurons
from neuronllm_eval.stages.write_identified import (
    MethodRun,
    write_neurons,
    write_questions,
    write_scores,
)

logger = logging.getLogger(__name__)
_METHODS = "methods"  # in the identity of a pass
# Below this many questions the log warns, for choosing and for judging.
FEW_QUESTIONS = 30
# Is told beforehand what a long stage will take.
Announce = Callable[[Estimate], object]


def identify_task(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    run: RunDirectory,
    launch: Launch | None = None,
    announce: Announce | None = None,
) -> NeuronSet:
    """Find a task's neurons: scores.safetensors, neurons.json and what belongs to them.

    Args:
        model: whose neurons.
        settings: of the run.
        questions: of the selection split (`run_tasks.selection_questions`).
        run: where the artifacts go.
        launch: the processes, and what becomes of what is there; one process that goes on with
            unfinished work if not given.
        announce: is told beforehand what a long stage will take.

    Raises:
        UsageError: the directory holds unfinished work of other settings.
    """
    method = make_method(settings.method, settings.method_args)
    only = MethodRun(method, run)
    return identify_by_methods(model, settings, questions, [only], launch, announce)[0]


def identify_by_methods(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    runs: Sequence[MethodRun],
    launch: Launch | None = None,
    announce: Announce | None = None,
) -> list[NeuronSet]:
    """The neurons of several methods, from one pass over the questions.

    Args:
        model: whose neurons.
        settings: of the run; each method's own are its `MethodRun`'s.
        questions: of the selection split.
        runs: at least one. The directory of the first holds the checkpoint.
        launch: see `identify_task`.
        announce: see `identify_task`.

    Raises:
        UsageError: a directory holds unfinished work of other settings.
    """
    with computing_in(model.lm.model, settings.attribution_dtype):
        return _identify(model, settings, questions, runs, launch or Launch(), announce)


def _identify(
    model: LoadedModel,
    settings: RunSettings,
    questions: QuestionSet,
    runs: Sequence[MethodRun],
    launch: Launch,
    announce: Announce | None,
) -> list[NeuronSet]:
    ranks = launch.ranks
    waiting = [runs[place] for place in ranks.on_first(lambda: _waiting(runs, launch.overwrite))]
    of_pass = waiting or runs
    home = of_pass[0].run
    how, stage = prepare_identification(
        model,
        settings,
        questions,
        home.path,
        lambda choose: batch_size_of(home.identifying, launch, choose),
        [each.method for each in of_pass],
    )
    engine, quadrature = stage.engine, how.quadrature
    resolved = settings.model_copy(
        update={
            "quadrature": quadrature.name,
            "n_steps": quadrature.n_steps,
            # An AQUA task's own name of the split says nothing about the data set's.
            "selection_split": settings.selection_split
            if is_aqua(questions.task)
            else questions.split,
            "num_fewshot": questions.num_fewshot,
        }
    )
    kept = [each for each in runs if each not in waiting]
    ranks.on_first(
        lambda: [
            keeps_neurons(each.run, each.settings(resolved), model, questions) for each in kept
        ]
    )
    if not waiting:
        return [load_neurons(each.run, each.settings(settings)) for each in runs]
    warn_of_few(questions, "choose the neurons; expect unstable scores")
    made_of = identity(model, waiting[0].settings(resolved), questions, engine)
    made_of[_METHODS] = {each.method.name: dataclasses.asdict(each.method) for each in waiting}
    work = Work.plan(made_of, questions.questions, how.batch_size)

    def begin() -> None:  # everything that could be refused has been
        for each in waiting:
            launch.locks.take(each.run.path)
            each.run.start()

    shared = SharedWork(work, home.identifying, launch, begin)
    if ranks.is_first:
        for each in waiting:
            each.run.note_command("identify", launch.command, ranks.n_ranks, versions())
    announce_if_long(stage, announce, launch)

    def write_settings(each: MethodRun) -> None:
        written, docs = each.settings(resolved).without_secrets(), doc_counts(questions)
        write_whole(each.run.settings, written.to_yaml(versions(), docs))
        each.run.keep(each.run.settings, (written, docs))

    if ranks.is_first:
        write_settings(waiting[0])
    sums = empty_sums(engine, questions.questions, how.methods)

    def attribute(units: Iterable[range]) -> None:
        for question, record in identify(engine, questions.questions, how, sums, units):
            if isinstance(record, DocError):
                set_aside(question, record, settings, shared)
            else:
                shared.record(dataclasses.asdict(record))

    shared.run(f"identify {settings.task}", attribute, lambda: tally_of(sums))
    whole = shared.finish()
    if whole is not None:
        records = list(whole.records())
        for each in reversed(waiting):  # the first is finished last: it says that all are
            name = each.method.name
            counted = without_set_aside(records, each.run, "selection")
            gaps, notes = write_questions(counted, name, each.run)
            largest = max((gap for gap in gaps if gap is not None), default=0.0)
            added = sums[name].of(whole.tally, largest, f"{name}/")
            scores = write_scores(model, resolved, questions, stage, each, added, notes)
            context = questions.prompts[0].context
            write_neurons(model, scores, resolved, each, context=context, or_none=len(runs) > 1)
            write_settings(each)  # from now on it is a run of its own
        close(home.identifying)
    ranks.wait()
    return [load_neurons(each.run, each.settings(settings)) for each in runs]


def _waiting(runs: Sequence[MethodRun], overwrite: bool) -> list[int]:
    """Places of the runs whose neurons are to be found; first the one that holds the checkpoint.

    An interrupted pass is gone on with for all its methods. Runs that are finished are kept.
    """
    for place, home in enumerate(runs):
        identity = None if overwrite else recorded_identity(home.run.identifying / WORK_FILE)
        if identity is not None:
            names = identity.get(_METHODS, {home.method.name: {}})
            left = [
                other
                for other, each in enumerate(runs)
                if other != place and (each.method.name in names or not each.run.neurons.is_file())
            ]
            return [place, *left]
    return [place for place, each in enumerate(runs) if overwrite or not each.run.neurons.is_file()]


def announce_if_long(stage: Stage, announce: Announce | None, launch: Launch) -> None:
    """Tell what a stage will take, if it takes long; the first process does for all."""
    if announce is None or not launch.ranks.is_first:
        return
    if (expected := estimate_if_long(stage)) is not None:
        announce(expected)


def warn_of_few(questions: QuestionSet, what: str) -> None:
    """Log a warning that so few questions `what`."""
    if len(questions.questions) < FEW_QUESTIONS:
        logger.warning(
            "%s: only %d questions %s",
            questions.task.config.task,
            len(questions.questions),
            what,
        )
