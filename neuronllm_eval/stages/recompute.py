"""Some questions of a finished run, recomputed as the run computed them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuronllm_eval.attribution.identify import IdentificationSettings
from neuronllm_eval.attribution.integrated_gradients import (
    Attributions,
    Quadrature,
    attribute_all,
    not_finite,
)
from neuronllm_eval.attribution.methods import Method, make_method
from neuronllm_eval.engine.batching import in_batches
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import Engine
from neuronllm_eval.harness.tokenize import QuestionSet
from neuronllm_eval.models.fingerprints import task_hash, tokenizer_hash
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load import LoadedModel, how_asked


def origins(
    model: LoadedModel, questions: QuestionSet, neurons: NeuronSet
) -> dict[str, tuple[str, str]]:
    """Of weights, tokenizer and task the digests: of what is at hand, and of what neurons are of.

    Args:
        model: as it is loaded now.
        questions: of the task as it is now.
        neurons: of a run.
    """
    known = neurons.provenance
    task = task_hash(questions.task.dump_config(), how_asked(questions.task))
    return {
        "weights": (model.hash, known.model_hash),
        "tokenizer": (tokenizer_hash(model.lm.tokenizer), known.tokenizer_hash),
        "task": (task, known.task_hash),
    }


def sampled(
    questions: QuestionSet, lines: Mapping[str, Any], sample: int, seed: int = 0
) -> tuple[list[Question], str]:
    """Some of the questions that a file tells of, and the first that the task has not.

    Args:
        questions: of the task.
        lines: what the file says, by question.
        sample: how many; all of them if there are no more.
        seed: which.

    Returns:
        the questions in the file's order, none if the task lacks one; that one, or an empty text.
    """
    known = {question.question_id: question for question in questions.questions}
    missing = next((name for name in lines if name not in known), "")
    if missing:
        return [], missing
    order = np.random.default_rng(seed).permutation(len(lines))[:sample]
    names = list(lines)
    return [known[names[place]] for place in sorted(order.tolist())], ""


@dataclass(frozen=True)
class Attributing:
    """How a run attributes its prompts.

    Attributes:
        engine: what computes.
        how: what is attributed, by which rule, and how many prompts go together.
    """

    engine: Engine
    how: IdentificationSettings

    @property
    def method(self) -> Method:
        """The run's method."""
        return self.how.methods[0]

    @classmethod
    def of(
        cls, model: LoadedModel, settings: RunSettings, questions: QuestionSet, neurons: NeuronSet
    ) -> Attributing:
        """How this run does.

        Args:
            model: the run's, in the type that neurons were attributed in (`computing_in`).
            settings: of the run, resolved.
            questions: all of the selection split, on which the engine is checked.
            neurons: of the run.
        """
        rule = Quadrature(settings.quadrature, settings.n_steps)
        engine = build_engine(
            model.lm.model,
            model.layers,
            questions.prompts,
            settings.engine,
            rule.n_steps or 1,
            settings.positions,
        )
        method = make_method(settings.method, settings.method_args)
        batch_size = settings.fixed_batch_size or neurons.provenance.batch_size
        how = IdentificationSettings(
            (method,), rule, settings.top_z, batch_size, settings.positions
        )
        return cls(engine, how)

    def recomputed(self, chosen: Sequence[Question]) -> Iterator[tuple[int, list[Attributions]]]:
        """Each question's index, and the attributions of its prompts, in order.

        Raises:
            DocError: a number is not finite.
        """
        how = self.how

        def attributed(prompts: Sequence[Prompt]) -> list[Attributions]:
            found = attribute_all(self.engine, prompts, how.quadrature, how.quantities)
            if (error := not_finite(prompts, found)) is not None:
                raise error
            return found

        return in_batches(chosen, how.batch_size, attributed)
