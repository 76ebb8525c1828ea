"""Stored answers give the harness's own metrics and result files."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import lm_eval
import numpy as np
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.utils import get_git_commit_hash
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.formats.typed_files import load
from neuronllm_eval.harness import results as harness_results
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.results import (
    AnsweredLM,
    ResultContext,
    ResultFile,
    harness_metrics,
    write_result,
)
from neuronllm_eval.harness.tasks import on_split, validation_split
from neuronllm_eval.harness.tokenize import PromptSettings
from neuronllm_eval.interventions.condition_plan import ConditionPlan
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.interventions.score_conditions import answers_under
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from tests.fixtures.harness import (
    DEMO_TASKS,
    TaskFolder,
    a_doc,
    demo_model_dir,
    demo_task,
    harness_model,
    include_paths,
    loglikelihood_requests,
    model_dir,
    neuron_set,
    some_docs,
)
from tests.fixtures.tiny_models import score_all


def stock_run(path, name, *, batch_size=1, limit=None, folder=None, **settings):
    """`lm_eval --model hf` of a task."""
    manager = TaskManager(include_path=include_paths(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        "hf", model_args={"pretrained": str(path)}, tasks=[name], task_manager=manager,
        batch_size=batch_size, limit=limit, device="cpu", log_samples=False, **settings,
    )  # fmt: skip


def scored(path, task, *, limit=None, batch_size=1, engine="auto", num_fewshot=None):
    """The questions of a task's validation split, and the unmasked model's answers."""
    lm = harness_model(path)
    judged = on_split(task, validation_split(task))
    questions = build_questions(lm, judged, PromptSettings(num_fewshot=num_fewshot), limit)
    layers = find_ffn_layers(lm.model)
    chosen = build_engine(lm.model, layers, questions.prompts, engine)
    plan = ConditionPlan((UNMASKED,), n_random=0)
    neurons = neuron_set(n_layers=layers.n_layers, width=layers.width)
    docs = score_all(chosen, questions.questions, plan.factors(neurons), batch_size)
    return questions, answers_under(docs, 0)


def metrics_of(results, name):
    return results["results"][name], results["n-samples"][name], results["higher_is_better"][name]


# The harness's own numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("name", DEMO_TASKS)
def test_unmasked_metrics_equal_stock_to_the_last_digit(name, batch_size):
    questions, answers = scored(model_dir(), demo_task(name), limit=10, batch_size=batch_size)
    ours = harness_metrics(questions, answers)
    stock = stock_run(model_dir(), name, limit=30, batch_size=batch_size)
    assert metrics_of(ours, name) == metrics_of(stock, name)
    assert ours["n-samples"][name]["effective"] == 30
    assert 0 < ours["results"][name]["acc,none"] < 1
    assert ours["results"][name]["acc_stderr,none"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("name", DEMO_TASKS)
def test_the_shipped_model_scores_as_in_stock(name, batch_size):
    path = demo_model_dir()
    limit = 30 if batch_size == 8 else 15
    questions, answers = scored(path, demo_task(name), limit=limit // 3, batch_size=batch_size)
    stock = stock_run(path, name, limit=limit, batch_size=batch_size)
    assert metrics_of(harness_metrics(questions, answers), name) == metrics_of(stock, name)


def test_answers_are_the_log_likelihoods_of_stock():
    path = model_dir()
    questions, answers = scored(path, demo_task(), limit=3, batch_size=8)
    instances = questions.task.instances
    stock = harness_model(path).loglikelihood(instances, disable_tqdm=True)
    found = AnsweredLM(answers, questions.doc_ids).loglikelihood(instances)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in stock]
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in stock], rtol=0, atol=1e-4)


@pytest.fixture
def words_task(tmp_path) -> tuple[TaskFolder, str]:
    """Options of several tokens and of different lengths, which share their first tokens."""
    folder = TaskFolder(tmp_path / "tasks")
    # Golds in unequal shares, so that always choosing another option shows in the metrics.
    docs = [{**a_doc(number), "answer": number % 8 // 5} for number in range(100, 124)]
    metrics = ("acc", "acc_norm", "acc_bytes", "exact_match", "brier_score")
    folder.write(
        "words",
        {"train": some_docs(0), "test": docs},
        doc_to_choice=["because of the cat", "because of the catapult, or so", "because of it"],
        metric_list=[{"metric": metric} for metric in metrics],
    )
    return folder, "words"


@pytest.mark.parametrize("tokenizer", ["words", "split_space"])
def test_every_multiple_choice_metric_equals_stock(words_task, tokenizer):
    # acc_norm divides by the options' lengths, and exact_match asks for greedy decoding: both need
    # the log-likelihoods and flags of the whole continuation, shared first tokens included.
    folder, name = words_task
    path = model_dir(tokenizer)
    questions, answers = scored(path, folder.load(name))
    ours = harness_metrics(questions, answers)["results"][name]
    stock = stock_run(path, name, folder=folder)["results"][name]
    assert set(ours) == set(stock)
    for metric, value in stock.items():
        if isinstance(value, float):
            assert ours[metric] == pytest.approx(value, abs=1e-5), metric


def test_the_wrong_answers_give_other_metrics():
    # Guards the comparisons above: answers shifted by a doc must show.
    questions, answers = scored(model_dir(), demo_task(), limit=10, batch_size=8)
    right = harness_metrics(questions, answers)["results"]["demo_topic"]
    gold = {prompt.doc_id: prompt.gold for prompt in questions.prompts}
    told = {doc: [(float(option == gold[doc]), False) for option in range(4)] for doc in answers}
    assert harness_metrics(questions, told)["results"]["demo_topic"]["acc,none"] == 1.0
    never = {doc: [(-value, flag) for value, flag in rows] for doc, rows in told.items()}
    assert harness_metrics(questions, never)["results"]["demo_topic"]["acc,none"] == 0.0
    assert 0 < right["acc,none"] < 1


# Docs that are not asked ------------------------------------------------------------------------


def lengthened(docs, which):
    """The docs, some of them with a question that no context holds."""
    return [
        {**doc, "question": doc["question"] + " please" * 60 * (number in which)}
        for number, doc in enumerate(docs)
    ]


@pytest.mark.parametrize("aqua", [True, False])
def test_metrics_of_the_docs_kept_are_those_of_stock(tmp_path, aqua):
    # Of 24 questions every third cannot be asked, from the first on: what is left has gaps.
    folder = TaskFolder(tmp_path / "tasks")
    docs = lengthened(some_docs(100, 24), range(0, 24, 3))
    folder.write("gaps", {"train": some_docs(0, 12), "test": docs}, aqua=aqua)
    path = model_dir(context=250)
    questions, answers = scored(path, folder.load("gaps"), num_fewshot=0)
    n_proxies = 3 if aqua else 1
    kept = list(questions.doc_ids)
    assert len(kept) == 16 * n_proxies
    assert kept != list(range(len(kept)))
    ours = harness_metrics(questions, answers)
    stock = stock_run(path, "gaps", folder=folder, samples={"gaps": kept}, num_fewshot=0)
    assert metrics_of(ours, "gaps") == metrics_of(stock, "gaps")
    assert ours["n-samples"]["gaps"]["effective"] == len(kept)
    assert 0 < ours["results"]["gaps"]["acc,none"] < 1
    # Guards the comparison: each answer goes to its own doc.
    told = {
        prompt.doc_id: [(float(option == prompt.gold), False) for option in range(4)]
        for prompt in questions.prompts
    }
    assert harness_metrics(questions, told)["results"]["gaps"]["acc,none"] == 1.0


def test_answers_to_prompts_that_lost_demonstrations_are_those_of_stock(tmp_path):
    folder = TaskFolder(tmp_path / "tasks")
    docs = lengthened(some_docs(100, 6), [2])
    for number in (1, 4):
        docs[number]["question"] += " please" * 20
    splits = {"train": some_docs(0), "test": docs, "demonstration": some_docs(200, 2)}
    folder.write("short", splits, aqua=True)
    path = model_dir(context=250)
    questions, answers = scored(path, folder.load("short"), num_fewshot=2)
    assert questions.counts == {
        "skipped": {"longer than the model's context": 3},
        "demonstrations_dropped": 6,
    }
    instances = questions.task.instances
    assert {instance.args[0].count("Answer:") for instance in instances} == {2, 3}
    stock = harness_model(path).loglikelihood(instances, disable_tqdm=True)
    found = AnsweredLM(answers, questions.doc_ids).loglikelihood(instances)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in stock]
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in stock], rtol=0, atol=1e-4)
    right = [
        float(np.argmax([value for value, _ in stock[first : first + 4]]) == instance.doc["answer"])
        for first, instance in list(enumerate(instances))[::4]
    ]
    assert len(right) == 15
    metrics = harness_metrics(questions, answers)["results"]["short"]
    assert metrics["acc,none"] == pytest.approx(np.mean(right))


# Nothing left behind ----------------------------------------------------------------------------


def test_the_task_is_clean_afterwards():
    questions, answers = scored(model_dir(), demo_task(), limit=2)
    task = questions.task
    instances = list(task.instances)
    first = harness_metrics(questions, answers)
    assert task.instances == instances
    assert all(not instance.resps for instance in instances)
    assert all(not instance.filtered_resps for instance in instances)
    assert "build_all_requests" not in vars(task)
    assert harness_metrics(questions, answers)["results"] == first["results"]
    task.build_all_requests(limit=1)  # the class's own again
    assert len(task.instances) == 4


def test_the_task_is_clean_after_an_exception(monkeypatch):
    questions, answers = scored(model_dir(), demo_task(), limit=2)
    task = questions.task

    def fail(*_):
        raise RuntimeError("the metric broke")

    with monkeypatch.context() as patch:
        patch.setattr(task, "process_results", fail)
        with pytest.raises(RuntimeError, match="the metric broke"):
            harness_metrics(questions, answers)
    assert all(not i.resps and not i.filtered_resps for i in task.instances)
    assert "build_all_requests" not in vars(task)
    assert harness_metrics(questions, answers)["n-samples"]["demo_topic"]["effective"] == 6


def test_only_multiple_choice_requests_are_answered():
    lm = AnsweredLM({7: [(-1.0, True)]}, [7])
    assert lm.loglikelihood(loglikelihood_requests([("a", "b")])) == [(-1.0, True)]
    for refused in (lm.generate_until, lm.loglikelihood_rolling):
        with pytest.raises(TypeError, match="only multiple-choice"):
            refused([])


# Result files -----------------------------------------------------------------------------------


def context(lm: HFLM, **config) -> ResultContext:
    return ResultContext.gather(
        lm,
        config={**lm.get_model_info(), **config},
        model_args={"pretrained": str(model_dir())},
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=True,
    )


@pytest.fixture(scope="module")
def stock_file(tmp_path_factory):
    """A result file written as the `lm_eval` command writes it."""
    folder = tmp_path_factory.mktemp("stock")
    tracker = EvaluationTracker(output_path=str(folder))
    results = stock_run(model_dir(), "demo_topic", limit=6, evaluation_tracker=tracker)
    tracker.save_results_aggregated(results=results)
    (written,) = folder.glob("**/results_*.json")
    return json.loads(written.read_text())


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "results" / "suppress_good.json"
    questions, answers = scored(model_dir(), demo_task(), limit=2)
    metrics = harness_metrics(questions, answers)
    mask = {"condition": "suppress_good", "positions": "scored", "neurons": "runs/x"}
    section = {"condition": "suppress_good", "mask_hash": "0123456789abcdef"}
    write_result(path, metrics, context(harness_model(model_dir()), limit=2), mask, section)
    assert [child.name for child in path.parent.iterdir()] == [path.name]  # no dated copy stays
    return json.loads(path.read_text())


def test_a_result_file_has_the_keys_of_stock(own_file, stock_file):
    assert set(own_file) == set(stock_file)


def test_a_result_file_has_the_content_of_stock(own_file, stock_file):
    for key in ("results", "n-samples", "n-shot", "versions", "higher_is_better", "group_subtasks"):
        assert own_file[key] == stock_file[key], key
    for key in ("max_length", "tokenizer_pad_token", "tokenizer_eos_token", "eot_token_id"):
        assert own_file[key] == stock_file[key], key
    ours, stock = (file["configs"]["demo_topic"] for file in (own_file, stock_file))
    assert {k: v for k, v in ours.items() if k != "metadata"} == {
        k: v for k, v in stock.items() if k != "metadata"
    }
    assert own_file["model_name"] == stock_file["model_name"]
    shared = set(stock_file["config"]) & set(own_file["config"])
    assert shared >= {"model", "model_args", "model_num_parameters", "model_dtype", "limit"}


def test_a_result_file_names_the_mask(own_file):
    assert own_file["config"]["model"] == own_file["model_source"] == "neuronllm"
    assert own_file["config"]["model_args"] == {
        "pretrained": str(model_dir()),
        "condition": "suppress_good",
        "positions": "scored",
        "neurons": "runs/x",
    }
    assert own_file["config"]["neuronllm"]["mask_hash"] == "0123456789abcdef"


def test_the_context_is_shared_and_left_alone(tmp_path):
    questions, answers = scored(model_dir(), demo_task(), limit=2)
    shared = context(harness_model(model_dir()))
    before = (dict(shared.model_args), dict(shared.config), dict(shared.environment))
    files = []
    for name in ("unmasked", "degrade"):
        write_result(
            tmp_path / f"{name}.json", harness_metrics(questions, answers), shared,
            {"condition": name}, {},
        )  # fmt: skip
        files.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert (shared.model_args, shared.config, shared.environment) == before
    assert [f["config"]["model_args"]["condition"] for f in files] == ["unmasked", "degrade"]


def test_a_result_file_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "results").write_text("a file where the folder should be")
    questions, answers = scored(model_dir(), demo_task(), limit=1)
    with (
        caplog.at_level(logging.CRITICAL, logger="lm_eval"),
        pytest.raises(
            ArtifactError, match=r"(?s)unmasked\.json could not be written.*--verbosity INFO"
        ),
    ):
        write_result(
            tmp_path / "results" / "unmasked.json",
            harness_metrics(questions, answers),
            context(harness_model(model_dir())),
            {"condition": "unmasked"},
            {},
        )


def test_a_result_file_that_is_cut_off_is_not_kept(tmp_path, monkeypatch, caplog):
    """The harness's tracker takes a full disk for a matter of its log."""
    real = Path.write_text

    def full(path: Path, text: str, **options: object) -> int:
        real(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    questions, answers = scored(model_dir(), demo_task(), limit=1)
    with (
        caplog.at_level(logging.CRITICAL, logger="lm_eval"),
        pytest.raises(ArtifactError, match=r"unmasked\.json could not be written"),
    ):
        write_result(
            tmp_path / "unmasked.json",
            harness_metrics(questions, answers),
            context(harness_model(model_dir())),
            {"condition": "unmasked"},
            {},
        )
    assert not list(tmp_path.iterdir())


# Reading a result file --------------------------------------------------------------------------


def test_metrics_are_read_without_their_standard_errors(tmp_path):
    path = tmp_path / "unmasked.json"
    values = {
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "acc_stderr_stderr,none": "N/A",
        "alias": "t",
    }
    results = {"results": {"t": {**values, "sample_len": 3}}, "configs": {}, "config": {}}
    path.write_text(json.dumps(results), encoding="utf-8")
    assert load(ResultFile, path, "").metrics("t", path) == {"acc": 0.5}


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"results": {"other": {}}, "configs": {}, "config": {}}']
)
def test_a_file_without_the_task_is_refused(tmp_path, text):
    path = tmp_path / "unmasked.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"unmasked\.json"):
        load(ResultFile, path, "").metrics("t", path)


@pytest.mark.parametrize("has_git", [True, False])
def test_outside_of_a_repository_git_says_nothing(tmp_path, monkeypatch, capfd, has_git):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if not has_git:
        monkeypatch.setenv("PATH", "")
    assert harness_results._git_hash() is None
    assert capfd.readouterr().err == ""


def test_a_repository_has_its_hash(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    if not (Path(__file__).resolve().parents[2] / ".git").exists():
        pytest.skip("this is no clone")
    assert harness_results._git_hash() == get_git_commit_hash()
