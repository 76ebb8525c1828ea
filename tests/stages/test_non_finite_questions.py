"""Questions that give NaN: named, counted, set aside, and averaged into nothing."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronllm_eval.neurons.scores import NeuronScores
from neuronllm_eval.runs.directory import RunDirectory
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load import (
    load_run_tasks,
    selection_questions,
    validation_questions,
)
from tests.fixtures.cli import (
    QUICK,
    assert_one_message,
    call,
    identify,
    jsonl,
    without_the_harness_tasks,
)
from tests.fixtures.harness import harness_model, model_dir, scratch

LIMIT = 8


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_the_harness_tasks(monkeypatch)


@functools.cache
def questions():
    """Selection and validation questions, by id, of the demo task with the tests' tokenizer."""
    lm = harness_model(model_dir())
    run = RunSettings(model_args={"pretrained": str(model_dir())}, task="demo_topic", limit=LIMIT)
    ((settings, task),) = load_run_tasks(run).values()
    return tuple(
        {each.question_id: each for each in found(lm, settings, task).questions}
        for found in (selection_questions, validation_questions)
    )


def tokens_of(question) -> set[int]:
    return {token for prompt in question.prompts for token in prompt.context}


@functools.cache
def poisoned() -> tuple[Path, str, str]:
    """A model with NaN in the embedding of two words, and the one question of each split with it.

    Neither is the longest or the shortest of its split, with which engines are checked.
    """
    tokens, names = [], []
    for own, other in (questions(), questions()[::-1]):
        counts = Counter(token for each in own.values() for token in tokens_of(each))
        taken = {token for each in other.values() for token in tokens_of(each)}
        lengths = {name: max(len(p.context) for p in each.prompts) for name, each in own.items()}
        inner = sorted(lengths, key=lengths.__getitem__)[2:-2]
        name, token = next(
            (name, token)
            for name in inner
            for token in sorted(tokens_of(own[name]))
            if counts[token] == 1 and token not in taken
        )
        tokens.append(token)
        names.append(name)
    path = scratch() / "poisoned_model"
    model = AutoModelForCausalLM.from_pretrained(model_dir())
    with torch.no_grad():
        model.model.embed_tokens.weight[tokens] = float("nan")
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(model_dir()).save_pretrained(path)
    return path, names[0], names[1]


@functools.cache
def runs() -> tuple[RunDirectory, RunDirectory, str]:
    """A sound model's run, the poisoned model's, and what the latter said."""
    made, said = [], ""
    for name, path in (("sound", model_dir()), ("poisoned", poisoned()[0])):
        output = scratch() / f"set_aside_{name}"
        flags = ("--limit", LIMIT, "--batch_size", 6, "--top_k", 6)
        code, _, err = call(*identify(output, *flags, path=path))
        assert code == 0, err
        code, said, err = call("validate", output, *QUICK)
        assert code == 0, err
        made.append(RunDirectory(output / "demo_topic"))
    return made[0], made[1], said


def test_the_question_is_named_and_counted_nowhere():
    sound, run, said = runs()
    (aside,) = jsonl(run.set_aside("selection"))
    assert aside["question_id"] == poisoned()[1]
    assert aside["reason"] == "NaN or infinite numbers"
    left = [line["question_id"] for line in jsonl(run.questions)]
    assert set(left) == set(questions()[0]) - {poisoned()[1]}
    known = NeuronScores.load(run.path)
    assert known.provenance.n_questions == LIMIT - 1
    assert np.isfinite(known.score).all()
    assert not sound.set_aside("selection").exists()
    assert "Docs of the selection split: 1 questions excluded (NaN or infinite values)" in said
    (judged,) = jsonl(run.set_aside("validation"))
    assert judged["question_id"] == poisoned()[2]


def test_the_others_are_what_they_were():
    sound, run, _ = runs()
    for name in ("questions", "conditions"):
        there = {
            (line["question_id"], line.get("doc_id")): line for line in jsonl(getattr(sound, name))
        }
        found = jsonl(getattr(run, name))
        assert len(found) > 0
        for line in found:
            expected = there[line["question_id"], line.get("doc_id")]
            values, wanted = line["loglikelihoods"], expected["loglikelihoods"]
            if name == "conditions":  # other neurons were chosen, without that question
                values, wanted = values["unmasked"], wanted["unmasked"]
            np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-4)


def test_results_are_over_the_others_under_every_condition():
    _, run, _ = runs()
    lines = jsonl(run.conditions)
    bad = poisoned()[2]
    assert {line["question_id"] for line in lines} == set(questions()[1]) - {bad}
    for name in lines[0]["loglikelihoods"]:
        values = json.loads(run.result(name).read_text())["results"]["demo_topic"]
        right = [int(np.argmax(line["loglikelihoods"][name])) == line["gold"] for line in lines]
        assert values["acc,none"] == pytest.approx(np.mean(right))


def test_a_finished_run_is_kept_and_verified():
    _, run, _ = runs()
    code, out, err = call("verify", run.path, "--limit", LIMIT, "--device", "cpu")
    assert code == 0, (out, err)
    before = run.conditions.stat().st_mtime_ns
    code, _, err = call("validate", run.path, *QUICK, "--resume")
    assert code == 0, err
    assert run.conditions.stat().st_mtime_ns == before


def test_told_to_fail_it_names_the_doc(tmp_path):
    path, name, _ = poisoned()
    flags = ("--limit", LIMIT, "--on_bad_doc", "fail")
    doc_ids = [str(prompt.doc_id) for prompt in questions()[0][name].prompts]
    result = call(*identify(tmp_path, *flags, path=path))
    assert_one_message(result, 1, "NaN or infinite", "dtype=float32")
    assert any(f"doc {doc_id} " in result[2] for doc_id in doc_ids)


def test_nothing_finite_at_all_is_one_message(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_dir())
    with torch.no_grad():
        model.model.norm.weight[:] = float("nan")
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(model_dir()).save_pretrained(tmp_path / "model")
    result = call(*identify(tmp_path / "run", path=tmp_path / "model"))
    assert_one_message(result, 1, "every question of the selection split")
    assert not (tmp_path / "run" / "demo_topic" / "neurons.json").exists()
