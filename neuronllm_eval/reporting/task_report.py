"""All that the report of one task shows, read once from the run directory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuronllm_eval.evaluation.condition_effects import ConditionSummary, summarise
from neuronllm_eval.evaluation.doc_table import DocTable, DocText, doc_table, read_doc_texts
from neuronllm_eval.evaluation.edit_cost import recorded_perplexity
from neuronllm_eval.evaluation.method_choice import MethodChoice, read_choice
from neuronllm_eval.evaluation.other_tasks import OtherTask, read_other_tasks
from neuronllm_eval.evaluation.stats.significance import ChanceTest, chance_test
from neuronllm_eval.explain.token_effects import NeuronKey, NeuronTokens, read_tokens
from neuronllm_eval.interventions.conditions import UNMASKED, Scales
from neuronllm_eval.neurons.label_parts import LabelParts, gold_counts, label_parts
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet
from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.prompts import SCORED
from neuronllm_eval.runs.artifacts import (
    QuestionLine,
    excluded_ids,
    load_commands,
    load_doc_counts,
    load_excluded,
    load_metrics,
    load_neurons,
    load_questions,
    load_scores,
    load_settings,
    load_validation,
)
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings


@dataclass(frozen=True)
class TaskReport:
    """The content of a report.

    Attributes:
        task: name of the harness task.
        split: the validation split; empty before validation.
        neurons: the good and bad neurons.
        scores: scores of all neurons.
        summaries: one per condition and point of a sweep; empty before validation.
        doc_counts: `selection` and `validation` -> counts of excluded and changed docs.
        metrics: name of condition or point -> the harness's metrics.
        applied_at: token positions at which conditions are applied (`prompts.POSITIONS`).
        answers: answer to every doc under every condition; None before validation.
        doc_texts: [docs] questions and options; empty for runs of versions that did not keep them.
        tokens: (`good` or `bad`, layer, index) -> tokens; empty if the model's are not readable.
        commands: the command lines that made the run (`read_commands`).
        selection_accuracy: the unmasked model's on the selection questions, against chance.
        others: what the conditions did to other tasks.
        choice: what `--method auto` tried and took; None for other methods.
        gold_counts: [options] selection prompts by gold option; empty if not known.
    """

    task: str
    split: str
    neurons: NeuronSet
    scores: NeuronScores
    summaries: tuple[ConditionSummary, ...] = ()
    doc_counts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    applied_at: str = SCORED
    answers: DocTable | None = None
    doc_texts: tuple[DocText, ...] = ()
    tokens: Mapping[NeuronKey, NeuronTokens] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    selection_accuracy: ChanceTest | None = None
    others: tuple[OtherTask, ...] = ()
    choice: MethodChoice | None = None
    gold_counts: tuple[int, ...] = ()

    @classmethod
    def load(cls, run: RunDirectory) -> TaskReport:
        """Read a run directory, validated or not.

        Raises:
            ArtifactError: a file is missing or damaged, or files are of different runs.
        """
        settings, neurons, scores = read_identified(run)
        doc_counts: dict[str, Any] = {"selection": load_doc_counts(run)}
        values: dict[str, Any] = {}
        run.require_listed("validate")
        if run.validation.exists() or run.conditions.exists():
            validation = load_validation(run)
            neurons = validation.validated(neurons, run.validation)
            doc_counts["validation"] = validation.docs
            values["applied_at"] = validation.positions
            if run.conditions.exists():
                values |= _validated(run, settings.task, neurons, validation.scales)
                values["others"] = read_other_tasks(run, neurons, validation)
        for role in ("selection", "validation"):
            if excluded := excluded_ids(run, role):
                doc_counts[role] = {**doc_counts.get(role, {}), "set_aside": len(excluded)}
        return cls(
            settings.task,
            split=values.pop("split", ""),
            neurons=neurons,
            scores=scores,
            doc_counts=doc_counts,
            tokens=run.once(run.tokens, lambda: read_tokens(run.tokens)),
            commands=read_commands(run),
            choice=read_choice(run) if run.choice.is_file() else None,
            selection_accuracy=_selection_accuracy(load_questions(run)),
            gold_counts=_gold_counts(run, scores),
            **values,
        )

    def label_parts(self, neurons: Sequence[Neuron]) -> LabelParts | None:
        """What neurons do for all gold options alike; None with fewer than two gold options."""
        if not self.gold_counts:
            return None
        layers = [neuron.layer for neuron in neurons]
        sums = self.scores.letter_sums[:, layers, [neuron.index for neuron in neurons]]
        return label_parts(sums, self.gold_counts)


def _selection_accuracy(questions: Sequence[QuestionLine]) -> ChanceTest | None:
    """None where all questions were excluded."""
    correct = [is_right for line in questions for is_right in line.right]
    n_options = [len(options) for line in questions for options in line.loglikelihoods]
    return chance_test(correct, n_options, len(questions)) if questions else None


def read_identified(run: RunDirectory) -> tuple[RunSettings, NeuronSet, NeuronScores]:
    """All that a report takes from an identification, so that damage is found before a validation.

    Raises:
        ArtifactError: a file is missing or damaged, or files are of different runs.
    """
    settings = load_settings(run)
    neurons = load_neurons(run, settings)
    scores = load_scores(run, neurons)
    run.once(run.tokens, lambda: read_tokens(run.tokens))
    load_excluded(run, "selection")
    _gold_counts(run, scores)
    read_commands(run)
    return settings, neurons, scores


def _gold_counts(run: RunDirectory, scores: NeuronScores) -> tuple[int, ...]:
    gold = (option for line in load_questions(run) for option in line.gold)
    counts = gold_counts(gold, len(scores.letter_sums), scores.provenance.n_prompts, run.questions)
    return tuple(counts.tolist())


def _validated(run: RunDirectory, task: str, neurons: NeuronSet, scales: Scales) -> dict[str, Any]:
    """Fields of a `TaskReport` that validation adds."""
    answers = doc_table(run, task)
    perplexity = recorded_perplexity(run, answers)
    summaries = tuple(summarise(answers, neurons, scales, perplexity=perplexity))
    metrics = {
        summary.name: load_metrics(run, summary.name, task)
        for summary in summaries
        if (summary.is_evaluated or summary.name == UNMASKED) and run.result(summary.name).exists()
    }
    path = run.validation_docs
    return {
        "split": answers.split,
        "summaries": summaries,
        "metrics": metrics,
        "answers": answers,
        "doc_texts": run.once(path, lambda: read_doc_texts(path, answers)),
    }


def read_commands(run: RunDirectory) -> tuple[str, ...]:
    """Commands that made the run: those of `identify`, and the last of `validate`, each once.

    Raises:
        ArtifactError: `commands.jsonl` is damaged.
    """
    commands = [
        (line.stage, " ".join(map(_shell_word, line.command))) for line in load_commands(run)
    ]
    identified = [command for stage, command in commands if stage != "validate"]
    validated = [command for stage, command in commands if stage == "validate"]
    return tuple(dict.fromkeys([*identified, *validated[-1:]]))


def _shell_word(word: str) -> str:
    """A quoted word; one with line breaks or invisible characters is written with escapes."""
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_shell_character, word))}'"


def _shell_character(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
