"""Runs made up for the page: any number of layers, points of a sweep, groups, and odd names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuronllm_eval.evaluation.condition_effects import summarise
from neuronllm_eval.evaluation.doc_table import DocTable
from neuronllm_eval.evaluation.doc_texts import JudgedDoc
from neuronllm_eval.interventions.conditions import (
    CONDITIONS,
    UNMASKED,
    ConditionName,
    Scales,
    control_name,
)
from neuronllm_eval.neurons.neuron_set import NeuronScores
from neuronllm_eval.reporting.condition_tables import RunDetails
from neuronllm_eval.reporting.neuron_token_files import NeuronTokens
from neuronllm_eval.reporting.report_markdown import TaskReport
from neuronllm_eval.reporting.reproduce_commands import identify_command
from neuronllm_eval.runs.settings import RunSettings
from tests.harness_fixtures import neuron_set, provenance

WIDTH = 64
HOSTILE = (
    "</script><script>alert(1)</script><img src=http://x.example/a onerror=alert(2)>"
    "\"' onload=alert(3) {{ 7 * 7 }} {% raw %} | `# \x1b[31m\u202e\n</style></svg></title>"
)
POINTS = tuple(
    str(ConditionName(condition, count, scale))
    for count in (1, 2, 4, 8, 12)
    for condition, scales in (
        ("suppress_good", (0.0, 0.25, 0.5, 0.75)),
        ("enhance_good", (1.5, 2.0, 4.0)),
        ("suppress_bad", (0.5,)),
        ("enhance_bad", (4.0,)),
        ("degrade", (None,)),
        ("enhance", (None,)),
    )
    for scale in scales
)


def judged(
    names: tuple[str, ...], n_questions: int = 12, n_options: int = 4, n_random: int = 2
) -> DocTable:
    """Answers of two docs a question, drawn anew for every condition."""
    rng = np.random.default_rng(0)
    controls = [control_name(name, seed) for name in names for seed in range(n_random)]
    lines = []
    for doc in range(2 * n_questions):
        weights = rng.random((1 + len(names) + len(controls), n_options)) + 0.01
        weights[:, doc % n_options] += rng.random(len(weights))
        rows = np.log(weights / weights.sum(1, keepdims=True)).tolist()
        lines.append(
            {
                "task": "t", "split": "dev", "doc_id": doc, "question_id": f"q{doc // 2}",
                "gold": doc % n_options,
                "loglikelihoods": dict(zip((UNMASKED, *names, *controls), rows, strict=True)),
            }
        )  # fmt: skip
    return DocTable.from_lines(lines, Path("conditions.jsonl"), "t")


def a_run(
    *,
    n_layers: int = 4,
    names: tuple[str, ...] = CONDITIONS[1:],
    n_options: int = 4,
    n_groups: int = 3,
    text: str = "some text",
    explained: bool = False,
    listed: bool = False,
    each: int = 12,
) -> tuple[TaskReport, RunDetails]:
    """A judged run; not judged without names.

    Args:
        n_layers: of the model.
        names: conditions and points.
        n_options: of every question.
        n_groups: families of questions.
        text: stands wherever data, task, model or tokenizer name something.
        explained: whether `explain` was run.
        listed: whether identification tells tokens.
        each: good neurons, and bad ones.
    """
    rng = np.random.default_rng(1)
    places = rng.permutation(n_layers * WIDTH)[: 2 * each]
    found = [(int(place) // WIDTH, int(place) % WIDTH) for place in places]
    origin = {
        "task": text, "split": text, "model": text, "method": text, "engine": text,
        "quadrature": text, "n_questions": 50, "n_prompts": 100, "asked": "{}",
        "method_args": "{}", "completeness_gap_max": 0.01, "completeness_gap_mean": 0.001,
        "completeness_gap_share": 0.02,
    }  # fmt: skip
    neurons = neuron_set(found[:each], found[each:], n_layers=n_layers, width=WIDTH, **origin)
    score = np.zeros((n_layers, WIDTH))
    for neuron in neurons.good + neurons.bad:
        score[neuron.place] = neuron.score
    halves = np.stack([score, score]) + rng.normal(size=(2, *score.shape)) * (score != 0)
    counts = np.full(score.shape, 3, dtype=np.int64)
    letters = np.zeros((4, *score.shape))
    scores = NeuronScores(score, counts, counts, halves, letters, provenance(**origin))
    tokens = {
        (kind, *neuron.place): NeuronTokens(
            (text, " b"), (" c",), *((0.25, "letter") if explained else ())
        )
        for kind, of_kind in (("good", neurons.good), ("bad", neurons.bad))
        for neuron in of_kind
        if explained or listed
    }
    if not names:
        report = TaskReport(text, "", neurons, scores, ())
        return report, RunDetails(tokens=tokens, commands=("identify it",))
    table = judged(names, n_options=n_options)
    docs = tuple(
        JudgedDoc(f"{text} {doc}", (text,) * n_options, f"{text} {doc % n_groups}"[-60:])
        for doc in range(len(table.doc_ids))
    )
    summaries = tuple(summarise(table, neurons, Scales(), n_resamples=50))
    metrics = {
        name: {metric: 0.5 for metric in ("acc_consistent", "acc_majority", "fortuity",
                                          "position_bias")}
        for name in (UNMASKED, *names)
    }  # fmt: skip
    counts_of = {"validation": {"data": {"skipped": {text: 2}}}}
    report = TaskReport(text, text, neurons, scores, summaries, counts_of, metrics)
    again = identify_command(
        RunSettings(model_args={"pretrained": text}, task="t", description=text)
    )
    commands = (again, "validate it")
    return report, RunDetails(table, docs, tokens, commands)
