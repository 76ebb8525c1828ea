"""Requests that the harness caches are those of the docs at hand."""

from __future__ import annotations

import json

import lm_eval
import pytest
from lm_eval.caching import cache
from lm_eval.tasks import TaskManager

from neuronllm_eval.harness import tasks_dir
from neuronllm_eval.harness.tasks import AquaTask
from tests.fixtures.harness import SpyLM, model_dir, some_docs

NAME = "aqua_cached"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an AQUA task, and the harness's cache in a folder of its own."""
    monkeypatch.setattr(cache, "PATH", str(tmp_path / "cache"))
    for split, first in (("train", 0), ("test", 100)):
        lines = map(json.dumps, some_docs(first, 12))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / f"{NAME}.yaml").write_text(
        f"include: {tasks_dir()}/aqua/_aqua.yaml\ntask: {NAME}\ndataset_kwargs:\n"
        f"  data_files: {{train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl}}\n",
        encoding="utf-8",
    )
    return tmp_path


def sent(folder, **metadata):
    """What reaches the model, with the harness's cache of requests in use."""
    spy = SpyLM(pretrained=str(model_dir()), device="cpu", batch_size=8)
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    results = lm_eval.simple_evaluate(
        spy, tasks=[NAME], task_manager=manager, cache_requests=True, bootstrap_iters=0, limit=6
    )
    return spy.seen, results["results"][NAME]


def test_the_class_is_the_harness_task_s_and_keeps_its_name(folder):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    task = manager.load([NAME])["tasks"][NAME]
    assert isinstance(task, AquaTask)
    task.build_all_requests(limit=3, cache_requests=True)
    assert task.config.task == NAME
    assert {instance.task_name for instance in task.instances} == {NAME}


def test_cached_requests_are_not_mixed_between_settings(folder):
    plain = sent(folder)
    styled = sent(folder, letter_style="(A)", n_proxies=2)
    assert plain != styled
    assert sent(folder) == plain  # from the cache
    assert sent(folder, letter_style="(A)", n_proxies=2) == styled


def test_a_cache_is_used_where_the_docs_are_the_same(folder, monkeypatch):
    first = sent(folder)
    monkeypatch.setattr(AquaTask, "construct_requests", None)  # nothing may be built again
    assert sent(folder) == first
