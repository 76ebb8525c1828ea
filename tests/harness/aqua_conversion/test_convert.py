"""Tasks of the installed harness as AQUA tasks, on docs built to their data sets' columns."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from neuronllm_eval.aqua.cleaning import DocCounts, RawQuestion
from neuronllm_eval.aqua.dataset import build_splits
from neuronllm_eval.aqua.dataset_source import DEMONSTRATION, SELECTION, VALIDATION
from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.errors import DocError, TaskError, UsageError
from neuronllm_eval.harness.aqua_conversion.convert import (
    load_any_tasks,
    load_converted,
    write_yaml,
)
from neuronllm_eval.harness.aqua_conversion.read_task import HarnessSource
from neuronllm_eval.harness.tasks import load_tasks
from tests.fixtures.conversion_schemas import (
    AS_TEXTS,
    CONFIGS,
    HARNESS_TASKS,
    LETTERED,
    REFUSED,
    Config,
    load,
)

TURNED = (*LETTERED, *AS_TEXTS)
# Half of their docs are of a kind that has several right answers.
HALF_REFUSED = {"bbq"}


@pytest.fixture(autouse=True)
def _quiet():
    """The harness warns of much; a message of an asked-for kind is tested where it matters."""
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    yield
    datasets.enable_progress_bars()


def first_question(config: Config) -> RawQuestion:
    source = HarnessSource(load(config))
    found = next(iter(source.read(VALIDATION, None, 0, DocCounts("x"))))
    assert isinstance(found, RawQuestion), found
    return found


# --- the configurations -----------------------------------------------------------------------


def test_there_is_variety():
    assert len(CONFIGS) >= 120
    assert len({config.family for config in CONFIGS}) >= 90
    assert len({config.task for config in CONFIGS}) == len(CONFIGS)


def test_the_document_has_them_all():
    text = (Path(__file__).resolve().parents[3] / "docs" / "aqua-conversion.md").read_text(
        encoding="utf-8"
    )
    families = len({config.family for config in CONFIGS})
    assert f"{len(CONFIGS)} tasks of {families} families: {len(TURNED)} turned, " in text
    assert [config.task for config in CONFIGS if f"| `{config.task}` | " not in text] == []
    assert text.count("| refused: ") == len(REFUSED)
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize("config", TURNED, ids=lambda config: config.task)
def test_turned(config):
    task = load(config)
    source = HarnessSource(task)
    first = next(iter(source.read(VALIDATION, None, 0, DocCounts("x"))))
    assert isinstance(first, RawQuestion), first
    assert first.question == config.stem
    assert tuple(first.choices) == config.options
    assert first.answer == config.gold
    assert first.passage == config.passage
    # The whole split.
    splits = build_splits(source, AquaSettings())
    read = splits.counts[VALIDATION]
    assert read.get("skipped", {}).keys() <= (
        {"several right answers"} if config.task in HALF_REFUSED else set()
    )


@pytest.mark.parametrize("config", REFUSED, ids=lambda config: config.task)
def test_refused(config):
    with pytest.raises(TaskError) as caught:
        HarnessSource(load(config))
    assert config.refused in caught.value.found
    assert config.task in caught.value.found
    assert caught.value.expected
    assert caught.value.remedy


def test_a_shuffling_task_is_read_alike_every_time():
    config = next(config for config in TURNED if config.task == "gpqa_diamond_zeroshot")
    assert first_question(config) == first_question(config)


# --- docs of all kinds, of a task of our own --------------------------------------------------


LETTERED_TASK = {
    "doc_to_text": "{{question}}\nA. {{a}}\nB. {{b}}\nC. {{c}}\nAnswer:",
    "doc_to_choice": ["A", "B", "C"],
    "doc_to_target": "answer",
}
TEXT_TASK = {
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": "{{[a, b, c]}}",
    "doc_to_target": "answer",
}


def doc(i: int = 0, **more: Any) -> dict[str, Any]:
    texts = {"question": f"Which of {i}?", "a": f"red {i}", "b": f"green {i}", "c": f"blue {i}"}
    return {**texts, "answer": i % 3, **more}


def docs(count: int = 24, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [doc(i, **more) for i in range(start, start + count)]


def source_of(
    splits: dict[str, list[dict[str, Any]]],
    selection_split: str | None = None,
    **config: Any,
) -> HarnessSource:
    from lm_eval.api.task import ConfigurableTask

    data = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    )
    values = {"task": "own", "output_type": "multiple_choice", "test_split": "test", **config}
    values["custom_dataset"] = lambda **_: data
    return HarnessSource(ConfigurableTask(config=values), selection_split)


def read(source: HarnessSource, role: str = VALIDATION) -> list[Any]:
    return list(source.read(role, None, 0, DocCounts("x")))


@pytest.mark.parametrize("answer", [2, 2.0, "C", "c", "(C)", " C", "blue 0", [2], ["C"]], ids=repr)
def test_targets_of_a_lettered_task(answer):
    (found,) = read(source_of({"test": [doc(answer=answer)]}, **LETTERED_TASK))
    expected = "blue 0"
    if answer == "c":  # another letter than the choices have
        assert found.answer == 2
    assert found.choices[found.answer] == expected


@pytest.mark.parametrize("answer", [1, "green 0", "1", "B", [1], ["green 0"]], ids=repr)
def test_targets_of_a_text_task(answer):
    template = {**TEXT_TASK, "doc_to_target": "{{answer}}"}
    (found,) = read(source_of({"test": [doc(answer=answer)]}, **template))
    assert found.choices[found.answer] == "green 0"


def test_numpy_numbers_and_functions():
    import numpy as np

    (found,) = read(
        source_of(
            {"test": [doc()]},
            doc_to_text=lambda each: f"{each['question']} Answer:",
            doc_to_choice={"x": "red", "y": "green"},
            doc_to_target=lambda each: np.int32(1),
        )
    )
    assert (found.question, found.choices, found.answer) == ("Which of 0?", ["red", "green"], 1)


def test_several_right_answers():
    with pytest.raises(TaskError, match="2 gold answers"):
        source_of({"test": docs(answer=[0, 1])}, **TEXT_TASK)


def test_a_target_that_counts_from_1():
    rows = [doc(i, answer=i % 3 + 1) for i in range(24)]
    with pytest.raises(TaskError, match="counts from 1"):
        source_of({"test": rows}, **TEXT_TASK)


def test_a_target_that_counts_from_1_of_a_lettered_task():
    rows = [doc(i, answer=i % 3 + 1) for i in range(24)]
    with pytest.raises(TaskError, match="counts from 1"):
        source_of({"test": rows}, **LETTERED_TASK)


def test_a_validation_split_without_labels():
    with pytest.raises(TaskError, match="no doc of the split 'test' has a gold option"):
        source_of({"test": docs(answer=-1)}, **TEXT_TASK)


def test_some_docs_without_labels_are_counted():
    rows = [doc(i, answer=-1 if i % 2 else 0) for i in range(24)]
    splits = build_splits(source_of({"test": rows}, **TEXT_TASK), AquaSettings())
    assert splits.counts[VALIDATION]["skipped"] == {"gold missing or out of range": 12}


def test_an_option_that_the_doc_does_not_have():
    rows = [doc(i, c=None if i % 2 else f"blue {i}") for i in range(24)]
    splits = build_splits(source_of({"test": rows}, **LETTERED_TASK), AquaSettings())
    assert splits.counts[VALIDATION]["skipped"] == {"missing option": 12}


def test_an_ambiguous_doc_is_skipped_and_counted():
    column = {"doc_to_text": "prompt", "doc_to_choice": ["A", "B"], "doc_to_target": "answer"}
    prompts = [f"A. Smith {i}?\nA. red\nB. green" if i % 2 else f"{i}?\nA. red\nB. green"
               for i in range(24)]  # fmt: skip
    rows = [{"prompt": prompt, "answer": i % 2} for i, prompt in enumerate(prompts)]
    splits = build_splits(source_of({"test": rows}, **column), AquaSettings())
    assert splits.counts[VALIDATION]["skipped"] == {"options ambiguous": 12}


def test_a_doc_that_a_function_fails_on_is_counted():
    def text(each: dict[str, Any]) -> str:
        if each["question"] == "Which of 3?":
            raise KeyError("no such column")
        return str(each["question"])

    found = read(source_of({"test": docs()}, **{**TEXT_TASK, "doc_to_text": text}))
    errors = [each for each in found if isinstance(each, DocError)]
    assert [error.reason for error in errors] == ["unreadable"]
    assert "KeyError: 'no such column'" in errors[0].found


def test_letters_without_options_in_the_prompt():
    with pytest.raises(TaskError, match="the choices are the letters A, B, C, but the prompt"):
        source_of({"test": docs()}, **{**LETTERED_TASK, "doc_to_text": "question"})


def test_single_letters_that_are_no_alphabet_are_texts():
    (found,) = read(
        source_of({"test": [doc()]}, doc_to_text="question", doc_to_choice=["T", "F"],
                  doc_to_target="answer")
    )  # fmt: skip
    assert found.choices == ["T", "F"]


def test_process_docs_filters():
    def evens(data: Any) -> Any:
        return data.filter(lambda each: each["answer"] == 0)

    source = source_of({"test": docs()}, **TEXT_TASK, process_docs=evens)
    assert [each.question for each in read(source)] == [f"Which of {i}?" for i in range(0, 24, 3)]


def test_own_scoring_is_asked_which_options_are_right():
    def scored(right: Callable[[int], bool]) -> HarnessSource:
        def process_results(each: dict[str, Any], results: list[tuple[float, bool]]) -> Any:
            best = max(range(len(results)), key=lambda place: results[place][0])
            return {"acc": right((best - each["answer"]) % 3)}

        metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
        return source_of(
            {"test": docs()}, **TEXT_TASK, process_results=process_results, metric_list=metrics
        )

    assert len(read(scored(lambda distance: distance == 0))) == 24
    with pytest.raises(TaskError, match="accepts 2 of 3 options"):
        scored(lambda distance: distance < 2)
    with pytest.raises(TaskError, match="accepts option 1, its target is 0"):
        scored(lambda distance: distance == 1)


def test_pictures_are_refused():
    with pytest.raises(TaskError, match="has images or audio"):
        source_of({"test": docs()}, **TEXT_TASK, doc_to_image="question")


# --- splits -----------------------------------------------------------------------------------


def splits_of(*names: str, **config: Any) -> dict[str, str]:
    rows = {name: docs(start=100 * n) for n, name in enumerate(("test", *names))}
    return dict(source_of(rows, **{**TEXT_TASK, **config}).splits)


def test_the_training_split_chooses():
    assert splits_of("train", "validation", training_split="train") == {
        SELECTION: "train",
        VALIDATION: "test",
    }


def test_the_fewshot_split_is_for_demonstrations():
    assert splits_of("dev", "validation", fewshot_split="dev") == {
        SELECTION: "validation",
        VALIDATION: "test",
        DEMONSTRATION: "dev",
    }


def test_a_fewshot_split_that_chooses_is_not_shown():
    found = splits_of("train", training_split="train", fewshot_split="train")
    assert found == {SELECTION: "train", VALIDATION: "test"}


def test_a_split_that_the_task_does_not_name_may_choose():
    assert splits_of("train")[SELECTION] == "train"


def test_one_split_is_halved():
    source = source_of({"test": docs()}, **TEXT_TASK, fewshot_split="test")
    assert dict(source.splits) == {SELECTION: "test", VALIDATION: "test"}
    splits = build_splits(source, AquaSettings(n_demonstrations=2))
    ids = [set(splits[role]["question_id"]) for role in (SELECTION, VALIDATION, DEMONSTRATION)]
    assert sum(map(len, ids)) == 24 == len(set.union(*ids))


def test_splits_that_cannot_be_read_do_not_choose():
    rows = {
        "test": docs(),
        "train": docs(start=100, answer=-1),
        "validation": docs(start=200),
        "dev": [{"other": 1}],
    }
    source = source_of(rows, **TEXT_TASK, training_split="train", validation_split="validation",
                       fewshot_split="test")  # fmt: skip
    assert source.splits[SELECTION] == "validation"
    del rows["validation"]
    source = source_of(rows, **TEXT_TASK, training_split="train")
    assert source.splits[SELECTION] == "test"


def test_the_selection_split_can_be_named():
    rows = {"test": docs(), "train": docs(start=100), "extra": docs(start=200)}
    assert source_of(rows, "extra", **TEXT_TASK).splits[SELECTION] == "extra"
    for name in ("test", "none"):
        with pytest.raises(TaskError, match=f"is to be '{name}'"):
            source_of(rows, name, **TEXT_TASK)
    rows["extra"] = docs(answer=-1)
    with pytest.raises(TaskError, match="no doc of the split 'extra' has"):
        source_of(rows, "extra", **TEXT_TASK)


# --- tasks by name, and as YAML ---------------------------------------------------------------


def write_task(folder: Path, name: str = "own", count: int = 24, **more: Any) -> Path:
    """A harness task on local files."""
    folder.mkdir(exist_ok=True)
    for number, split in enumerate(("train", "test")):
        rows = "".join(json.dumps(row) + "\n" for row in docs(count, start=1000 * number))
        (folder / f"{split}.jsonl").write_text(rows)
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
        },
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        **TEXT_TASK,
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with the tasks `own` and `other` and their group `both`."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    write_task(folder)
    write_task(folder, "other", doc_to_text=LETTERED_TASK["doc_to_text"],
               doc_to_choice=["A", "B", "C"])  # fmt: skip
    (folder / "both.yaml").write_text("group: both\ntask: [own, other]\n")
    return folder


def test_by_name(tasks):
    (task,) = load_any_tasks(["aqua:own"], [tasks]).values()
    assert task.config.task == "aqua:own"
    assert task.dataset.counts[VALIDATION] == {"split": "test", "docs": 24, "questions": 24}
    assert task.dataset.counts[SELECTION]["split"] == "train"
    assert task.eval_docs[0]["prompt"].endswith("\nAnswer:")


def test_plain_and_aqua_together(tasks):
    found = load_any_tasks(["own", "aqua:both"], [tasks])
    assert list(found) == ["own", "aqua:own", "aqua:other"]


def test_settings_come_from_flags(tasks):
    flags = {"n_proxies": 2, "seed": 5, "letter_style": "(A)", "n_demonstrations": 3}
    (task,) = load_any_tasks(["aqua:own"], [tasks], {"pretrained": "x"}, flags).values()
    assert task.dataset.settings == AquaSettings(**flags, orders="original")
    assert task.config.metadata["overrides"] == flags


def test_an_aqua_task_is_not_turned_again(tasks, tmp_path):
    write_yaml("own", tmp_path / "made", [tasks])
    with pytest.raises(TaskError, match="is an AQUA task already"):
        load_any_tasks(["aqua:aqua_own"], [tasks, tmp_path / "made"])


def test_changed_files_are_read_again(tasks, tmp_path):
    (before,) = load_any_tasks(["aqua:own"], [tasks]).values()
    write_task(tasks, doc_to_text="Really: {{question}}")
    (after,) = load_any_tasks(["aqua:own"], [tasks]).values()
    assert not before.eval_docs[0]["question"].startswith("Really")
    assert after.eval_docs[0]["question"].startswith("Really")
    other = tmp_path / "elsewhere"
    write_task(other, doc_to_text="Elsewhere: {{question}}")
    (third,) = load_any_tasks(["aqua:own"], [other]).values()
    assert third.eval_docs[0]["question"].startswith("Elsewhere")
    values = {"harness_task": "own"}
    assert load_converted(**values, include_path=[tasks])[VALIDATION][0]["question"][:6] == "Really"
    assert load_converted(**values, include_path=[other])[VALIDATION][0]["question"][:4] == "Else"


def manager(*folders: Path) -> TaskManager:
    return TaskManager(include_path=[str(each) for each in folders], include_defaults=False)


def test_the_yaml_gives_the_same_docs(tasks, tmp_path):
    flags = {"n_proxies": 4, "seed": 3, "letter_style": "A)", "selection_split": "train"}
    (path,) = write_yaml("own", tmp_path / "made", [tasks], flags)
    assert path == tmp_path / "made" / "aqua_own.yaml"
    (made,) = manager(path.parent).load(["aqua_own"])["tasks"].values()
    (named,) = load_any_tasks(["aqua:own"], [tasks], None, flags).values()
    for role in (SELECTION, VALIDATION, DEMONSTRATION):
        assert made.dataset[role].to_list() == named.dataset[role].to_list()
    assert made.config.metadata["n_proxies"] == 4
    assert made.config.metadata["counts"][VALIDATION]["questions"] == 24
    assert made.dataset.settings == named.dataset.settings


def test_a_group_is_written_as_a_group(tasks, tmp_path):
    paths = write_yaml("both", tmp_path / "made", [tasks])
    assert [path.name for path in paths] == [
        "aqua_own.yaml",
        "aqua_other.yaml",
        "aqua_both.yaml",
    ]
    loaded = manager(tmp_path / "made").load(["aqua_both"])
    assert list(loaded["tasks"]) == ["aqua_own", "aqua_other"]
    assert list(loaded["groups"]) == ["aqua_both"]


def test_stock_lm_eval_runs_the_yaml(tasks, tmp_path):
    write_yaml("both", tmp_path / "made", [tasks])
    results = simple_evaluate(
        model=get_model("dummy")(),
        tasks=["aqua_both"],
        task_manager=manager(tmp_path / "made"),
        bootstrap_iters=0,
        log_samples=True,
    )
    assert set(results["results"]) == {"aqua_both", "aqua_own", "aqua_other"}
    assert {"acc,none", "fortuity,none"} <= set(results["results"]["aqua_own"])
    prompt = results["samples"]["aqua_own"][0]["arguments"][0][0]
    assert prompt.startswith("You are a careful expert.")
    assert prompt.count("\nAnswer:") == 2  # a demonstration, and the question
    assert results["configs"]["aqua_own"]["metadata"]["counts"][VALIDATION]["questions"] == 24


def test_a_task_given_by_name_can_be_evaluated(tasks):
    (task,) = load_any_tasks(["aqua:own"], [tasks]).values()
    results = simple_evaluate(model=get_model("dummy")(), tasks=[task], bootstrap_iters=0)
    assert "acc,none" in results["results"]["aqua:own"]


def test_nothing_is_overwritten(tasks, tmp_path):
    folder = tmp_path / "made"
    (path,) = write_yaml("own", folder, [tasks])
    before = path.read_text()
    with pytest.raises(UsageError, match=r"aqua_own\.yaml exists"):
        write_yaml("own", folder, [tasks])
    with pytest.raises(UsageError, match=r"aqua_own\.yaml exists"):
        write_yaml("both", folder, [tasks])
    assert [each.name for each in folder.iterdir()] == ["aqua_own.yaml"]
    assert path.read_text() == before


def test_bad_folders(tasks, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="file is not a folder"):
        write_yaml("own", file, [tasks])
    with pytest.raises(UsageError, match="cannot be written"):
        write_yaml("own", file / "below", [tasks])
    with pytest.raises(UsageError, match="is not a directory"):
        load_any_tasks(["aqua:own"], [tmp_path / "missing"])


def test_a_ready_task_is_named_instead(tmp_path):
    with pytest.raises(UsageError) as caught:
        write_yaml("arc_easy", tmp_path / "made")
    assert "the package has aqua_arc_easy already" in str(caught.value)
    assert "pass --tasks aqua_arc_easy" in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_a_group_with_a_task_that_is_ready(tasks, tmp_path):
    write_task(tasks, "boolq")
    (tasks / "some.yaml").write_text("group: some\ntask: [own, boolq]\n")
    with pytest.raises(UsageError, match="the package has aqua_boolq already"):
        write_yaml("some", tmp_path / "made", [tasks])
    assert not (tmp_path / "made").exists()


def test_nothing_is_written_of_a_task_that_cannot_be_turned(tasks, tmp_path):
    write_task(tasks, "pairs", doc_to_text="")
    (tasks / "some.yaml").write_text("group: some\ntask: [own, pairs]\n")
    with pytest.raises(TaskError, match=r"task pairs cannot be converted .* has no stem"):
        write_yaml("some", tmp_path / "made", [tasks])
    assert not (tmp_path / "made").exists()


def test_a_task_that_generates(tasks, tmp_path):
    write_task(tasks, "free", output_type="generate_until", doc_to_choice=None)
    with pytest.raises(TaskError, match="task free has output_type generate_until"):
        write_yaml("free", tmp_path / "made", [tasks])


def test_a_task_within_a_group_has_no_name_of_its_own(tasks, tmp_path):
    inner = yaml.safe_load((tasks / "own.yaml").read_text())
    inner["task"] = "inner"
    group = {"group": "outer", "task": [inner]}
    (tasks / "outer.yaml").write_text(yaml.safe_dump(group))
    with pytest.raises(TaskError, match="task outer::inner has settings of the group outer"):
        write_yaml("outer", tmp_path / "made", [tasks])


def test_bad_settings_are_refused(tasks, tmp_path):
    with pytest.raises(UsageError, match="n_proxies is 0"):
        write_yaml("own", tmp_path / "made", [tasks], {"n_proxies": 0})


def test_an_unknown_task(tmp_path):
    with pytest.raises(TaskError, match="unknown task 'arc_hard'") as caught:
        write_yaml("arc_hard", tmp_path / "made")
    assert "arc" in caught.value.expected
    with pytest.raises(TaskError, match="unknown task 'arc_hard'"):
        load_any_tasks(["aqua:arc_hard"])


def test_tasks_of_the_harness_are_found_fast(tmp_path, monkeypatch):
    anli = next(each for each in TURNED if each.task == "anli_r1").data()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: anli)
    (path,) = write_yaml("anli_r1", tmp_path / "made")
    source = yaml.load(path.read_text().replace("!function ", ""), Loader=yaml.SafeLoader)
    assert source["dataset_kwargs"] == {
        "harness_task": "anli_r1",
        "harness_yaml": "anli/anli_r1.yaml",
    }
    # Not the index of all tasks: only the folder of this one.
    monkeypatch.setattr(TaskIndex, "build", staticmethod(_without_harness(TaskIndex.build)))
    (made,) = manager(path.parent).load(["aqua_anli_r1"])["tasks"].values()
    assert made.dataset.counts[VALIDATION]["split"] == "test_r1"


def _without_harness(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build_checked(paths: Any) -> Any:
        assert HARNESS_TASKS not in list(map(Path, paths))
        return build(paths)

    return build_checked


def test_a_task_that_is_a_class(tmp_path, tasks):
    (tasks / "kind.py").write_text(
        "from lm_eval.api.task import ConfigurableTask\n"
        "class Kind(ConfigurableTask):\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config={k: v for k, v in config.items() if k != 'class'})\n"
        "    def doc_to_text(self, doc):\n"
        "        return 'Q'\n"
    )
    config = yaml.safe_load((tasks / "own.yaml").read_text())
    config["task"] = "kind"
    text = yaml.safe_dump(config) + "class: !function kind.Kind\n"
    (tasks / "kind.yaml").write_text(text)
    assert load_tasks(["kind"], [tasks])
    with pytest.raises(TaskError, match="task kind has its own class, Kind"):
        load_any_tasks(["aqua:kind"], [tasks])
