"""The ready AQUA tasks, each on local files with its data set's columns, types and label order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pytest
import yaml
from datasets import ClassLabel, Features, List, Value
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.hellaswag.utils import preprocess

from neuronllm_eval.harness import tasks_dir
from tests.fixtures.cli import stock, without_the_harness_tasks

AQUA = tasks_dir() / "aqua"
ROLE = "You are a careful expert. Each question has one right option; answer with its letter.\n\n"
MMLU_FOLDER = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
METRICS = ["acc", "acc_consistent", "acc_majority", "fortuity", "position_bias"]
MISSING, UNREADABLE = "gold missing or out of range", "unreadable"
REPEATED, SEVERAL = "repeated options", "several right answers"
TEXT, INT32 = Value("string"), Value("int32")
TEXTS = List(TEXT)
TEXTS_AND_LABELS = {"text": TEXTS, "label": TEXTS}
NAMES = ["Ann", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo"]


@dataclass(frozen=True)
class Ready:
    """A ready task, its data set's form, and what is to be asked of its first row.

    Attributes:
        load: path, name and revision for `datasets.load_dataset`.
        splits: that choose neurons, that judge them, of the demonstrations.
        features: columns and types.
        row: a row by number; those of different numbers are different questions.
        passage: what is read before the question of row 0.
        question: the stem of row 0.
        choices: the options of row 0, in the data's order.
        gold: the right one.
        bad: what makes of a row one that cannot be asked, and the reason it is counted under.
    """

    load: tuple[str, str | None, str | None]
    splits: tuple[str, str, str | None]
    features: Features
    row: Callable[[int], dict[str, Any]]
    question: str
    choices: list[str]
    gold: str
    bad: list[tuple[dict[str, Any], str]]
    passage: str = ""

    @property
    def halved(self) -> bool:
        return self.splits[0] == self.splits[1]


def classification(labels: list[str], *texts: str, **more: Any) -> Features:
    """Text columns, a label, and more."""
    return Features({name: TEXT for name in texts} | {"label": ClassLabel(names=labels)} | more)


READY = {
    "aqua_arc_easy": Ready(
        load=("allenai/ai2_arc", "ARC-Easy", None),
        splits=("train", "test", "validation"),
        features=Features(
            {"id": TEXT, "question": TEXT, "choices": TEXTS_AND_LABELS, "answerKey": TEXT}
        ),
        row=lambda n: {
            "id": f"Mercury_{n}",
            "question": f"Which of these did {NAMES[n]} see fall?",
            "choices": {"text": ["snow", "sand", "a star", "ash"], "label": list("ABCD")},
            "answerKey": "C",
        },
        question="Which of these did Ann see fall?",
        choices=["snow", "sand", "a star", "ash"],
        gold="a star",
        bad=[
            ({"answerKey": ""}, UNREADABLE),
            ({"choices": {"text": ["ash", "ash"], "label": list("AC")}}, REPEATED),
        ],
    ),
    "aqua_arc_challenge": Ready(
        load=("allenai/ai2_arc", "ARC-Challenge", None),
        splits=("train", "test", "validation"),
        features=Features(
            {"id": TEXT, "question": TEXT, "choices": TEXTS_AND_LABELS, "answerKey": TEXT}
        ),
        # Some questions have numbers for letters, and some three options.
        row=lambda n: {
            "id": f"NYSEDREGENTS_{n}",
            "question": f"What does {NAMES[n]} measure with a balance?",
            "choices": {"text": ["length", "2", "mass"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        question="What does Ann measure with a balance?",
        choices=["length", "2", "mass"],
        gold="2",
        bad=[({"answerKey": "4"}, UNREADABLE)],
    ),
    "aqua_openbookqa": Ready(
        load=("allenai/openbookqa", "main", None),
        splits=("train", "test", "validation"),
        features=Features(
            {"id": TEXT, "question_stem": TEXT, "choices": TEXTS_AND_LABELS, "answerKey": TEXT}
        ),
        row=lambda n: {
            "id": f"8-{n}",
            "question_stem": f"{NAMES[n]} is warmed by",
            "choices": {"text": ["the sun", "the moon", "ice", "fog"], "label": list("ABCD")},
            "answerKey": " A",
        },
        question="Ann is warmed by",
        choices=["the sun", "the moon", "ice", "fog"],
        gold="the sun",
        bad=[({"answerKey": ""}, UNREADABLE)],
    ),
    "aqua_commonsense_qa": Ready(
        load=("tau/commonsense_qa", None, None),
        splits=("train", "validation", None),
        features=Features(
            {"id": TEXT, "question": TEXT, "question_concept": TEXT}
            | {"choices": TEXTS_AND_LABELS, "answerKey": TEXT}
        ),
        row=lambda n: {
            "id": f"c{n}",
            "question": f"Where would {NAMES[n]} keep a boat?",
            "question_concept": "boat",
            "choices": {"text": ["bed", "oven", "book", "sky", "dock"], "label": list("ABCDE")},
            "answerKey": "E",
        },
        question="Where would Ann keep a boat?",
        choices=["bed", "oven", "book", "sky", "dock"],
        gold="dock",
        bad=[({"answerKey": ""}, MISSING)],
    ),
    "aqua_hellaswag": Ready(
        load=("Rowan/hellaswag", None, None),
        splits=("train", "validation", None),
        features=Features(
            {"ind": INT32, "activity_label": TEXT, "ctx_a": TEXT, "ctx_b": TEXT, "ctx": TEXT}
            | {"endings": TEXTS, "source_id": TEXT, "split": TEXT, "split_type": TEXT}
            | {"label": TEXT}
        ),
        row=lambda n: {
            "ind": n,
            "activity_label": f"How {NAMES[n]} paints",
            "ctx_a": "[header] Paint it [title] Take a brush.",
            "ctx_b": "The paint",
            "ctx": "not used",
            "endings": [" dries.", "[step] sings.", "is [substeps] eaten.", "flies [title] Then."],
            "source_id": f"wikihow~{n}",
            "split": "val",
            "split_type": "indomain",
            "label": "0",
        },
        passage="How Ann paints: Paint it. Take a brush. The paint",
        question="Which ending continues this text best?",
        choices=["dries.", "sings.", "is eaten.", "flies. Then."],
        gold="dries.",
        bad=[
            ({"label": ""}, MISSING),
            ({"endings": ["a [step]", "a", "b", "c"]}, REPEATED),
        ],
    ),
    "aqua_sciq": Ready(
        load=("allenai/sciq", None, None),
        splits=("train", "test", "validation"),
        features=Features(
            {"question": TEXT, "distractor3": TEXT, "distractor1": TEXT, "distractor2": TEXT}
            | {"correct_answer": TEXT, "support": TEXT}
        ),
        row=lambda n: {
            "question": f"What does {NAMES[n]} breathe?",
            "distractor3": "water",
            "distractor1": "iron",
            "distractor2": "fire",
            "correct_answer": "air",
            "support": "Mammals breathe air.\n",
        },
        passage="Mammals breathe air.",
        question="What does Ann breathe?",
        choices=["iron", "fire", "water", "air"],
        gold="air",
        bad=[({"distractor3": "air"}, REPEATED), ({"distractor1": ""}, "empty option")],
    ),
    "aqua_piqa": Ready(
        load=("baber/piqa", None, None),
        splits=("train", "validation", None),
        features=Features({"goal": TEXT, "sol1": TEXT, "sol2": TEXT, "label": Value("int64")}),
        row=lambda n: {
            "goal": f"wake {NAMES[n]}",
            "sol1": "whisper",
            "sol2": "ring a bell",
            "label": 1,
        },
        passage="Goal: wake Ann",
        question="Which solution reaches this goal?",
        choices=["whisper", "ring a bell"],
        gold="ring a bell",
        bad=[({"label": -1}, MISSING), ({"sol1": "ring a bell"}, REPEATED)],
    ),
    "aqua_boolq": Ready(
        load=("aps/super_glue", "boolq", None),
        splits=("train", "validation", None),
        features=Features(
            {"question": TEXT, "passage": TEXT, "idx": INT32}
            | {"label": ClassLabel(names=["False", "True"])}
        ),
        row=lambda n: {
            "question": f"is {NAMES[n]} a name",
            "passage": "Names -- All of these are names.",
            "idx": n,
            "label": 1,
        },
        passage="Names -- All of these are names.",
        question="is Ann a name?",
        choices=["no", "yes"],
        gold="yes",
        bad=[({"label": -1}, MISSING)],
    ),
    "aqua_truthfulqa_mc1": Ready(
        load=("truthfulqa/truthful_qa", "multiple_choice", None),
        splits=("validation", "validation", None),
        features=Features(
            {
                "question": TEXT,
                "mc1_targets": {"choices": TEXTS, "labels": List(INT32)},
                "mc2_targets": {"choices": TEXTS, "labels": List(INT32)},
            }
        ),
        row=lambda n: {
            "question": f"What happens if {NAMES[n]} eats {n} seeds?",
            "mc1_targets": {"choices": ["Nothing", "It grows", "Pain"], "labels": [1, 0, 0]},
            "mc2_targets": {"choices": ["Nothing", "Little", "Pain"], "labels": [1, 1, 0]},
        },
        question="What happens if Ann eats 0 seeds?",
        choices=["Nothing", "It grows", "Pain"],
        gold="Nothing",
        bad=[({"mc1_targets": {"choices": ["a", "b"], "labels": [0, 0]}}, UNREADABLE)],
    ),
    "aqua_winogrande": Ready(
        load=("allenai/winogrande", "winogrande_xl", None),
        splits=("train", "validation", None),
        features=Features({"sentence": TEXT, "option1": TEXT, "option2": TEXT, "answer": TEXT}),
        row=lambda n: {
            "sentence": f"{NAMES[n]} could not lift the box with the hand as the _ was heavy.",
            "option1": "hand",
            "option2": "box",
            "answer": "2",
        },
        passage="Ann could not lift the box with the hand as the _ was heavy.",
        question="What does the blank _ in this sentence stand for?",
        choices=["hand", "box"],
        gold="box",
        bad=[({"answer": ""}, MISSING)],
    ),
    "aqua_social_iqa": Ready(
        load=("lighteval/siqa", None, None),
        splits=("train", "validation", None),
        features=Features(
            {"context": TEXT, "question": TEXT, "answerA": TEXT, "answerB": TEXT}
            | {"answerC": TEXT, "label": TEXT}
        ),
        row=lambda n: {
            "context": f"{NAMES[n]} gave away the last apple.",
            "question": "How would others feel?",
            "answerA": "robbed",
            "answerB": "asleep",
            "answerC": "grateful",
            "label": "3",
        },
        passage="Ann gave away the last apple.",
        question="How would others feel?",
        choices=["robbed", "asleep", "grateful"],
        gold="grateful",
        bad=[({"label": ""}, MISSING)],
    ),
    "aqua_medqa": Ready(
        load=("GBaker/MedQA-USMLE-4-options-hf", None, None),
        splits=("train", "test", "validation"),
        features=Features(
            {"id": TEXT, "sent1": TEXT, "sent2": TEXT, "ending0": TEXT, "ending1": TEXT}
            | {"ending2": TEXT, "ending3": TEXT, "label": Value("int64")}
        ),
        row=lambda n: {
            "id": f"train-{n:05}",
            "sent1": f"{NAMES[n]} coughs. Which drug helps?",
            "sent2": "",
            "ending0": "Aspirin",
            "ending1": "Codeine",
            "ending2": "Insulin",
            "ending3": "Heparin",
            "label": 1,
        },
        question="Ann coughs. Which drug helps?",
        choices=["Aspirin", "Codeine", "Insulin", "Heparin"],
        gold="Codeine",
        bad=[({"label": 4}, MISSING)],
    ),
    "aqua_medmcqa": Ready(
        load=("openlifescienceai/medmcqa", None, None),
        splits=("train", "validation", None),
        features=Features(
            {"id": TEXT, "question": TEXT, "opa": TEXT, "opb": TEXT, "opc": TEXT, "opd": TEXT}
            | {"cop": ClassLabel(names=list("abcd")), "choice_type": TEXT, "exp": TEXT}
            | {"subject_name": TEXT, "topic_name": TEXT}
        ),
        row=lambda n: {
            "id": f"uuid-{n}",
            "question": f"{NAMES[n]} lacks vitamin C and has",
            "opa": "Rickets",
            "opb": "Scurvy",
            "opc": "Gout",
            "opd": "Goitre",
            "cop": 1,
            "choice_type": "single",
            "exp": None,
            "subject_name": "Medicine",
            "topic_name": None,
        },
        question="Ann lacks vitamin C and has",
        choices=["Rickets", "Scurvy", "Gout", "Goitre"],
        gold="Scurvy",
        bad=[({"cop": -1}, MISSING)],
    ),
    "aqua_logiqa": Ready(
        load=("lucasmccabe/logiqa", None, "refs/convert/parquet"),
        splits=("train", "test", "validation"),
        features=Features(
            {"context": TEXT, "query": TEXT, "options": TEXTS, "correct_option": INT32}
        ),
        row=lambda n: {
            "context": f"All cats purr. {NAMES[n]} is a cat.",
            "query": "Which follows?",
            "options": ["It barks.", "It purrs.", "It naps.", "It eats."],
            "correct_option": 1,
        },
        passage="All cats purr. Ann is a cat.",
        question="Which follows?",
        choices=["It barks.", "It purrs.", "It naps.", "It eats."],
        gold="It purrs.",
        bad=[({"options": ["It naps.", "It purrs.", "It naps.", "It eats."]}, REPEATED)],
    ),
    "aqua_sst2": Ready(
        load=("nyu-mll/glue", "sst2", None),
        splits=("train", "validation", None),
        features=classification(["negative", "positive"], "sentence", idx=INT32),
        row=lambda n: {"sentence": f"{NAMES[n]} shines in it . ", "label": 1, "idx": n},
        passage="Ann shines in it .",
        question="What is the sentiment of this sentence?",
        choices=["negative", "positive"],
        gold="positive",
        bad=[({"label": -1}, MISSING)],
    ),
    "aqua_ag_news": Ready(
        load=("fancyzhx/ag_news", None, None),
        splits=("train", "test", None),
        features=classification(["World", "Sports", "Business", "Sci/Tech"], "text"),
        row=lambda n: {"text": f"{NAMES[n]} sends a probe to Mars", "label": 3},
        passage="Ann sends a probe to Mars",
        question="What is the topic of this news text?",
        choices=["world", "sports", "business", "science and technology"],
        gold="science and technology",
        bad=[({"label": -1}, MISSING)],
    ),
    "aqua_trec": Ready(
        load=("CogComp/trec", None, "refs/convert/parquet"),
        splits=("train", "test", None),
        features=Features(
            {"text": TEXT, "fine_label": ClassLabel(num_classes=50)}
            | {"coarse_label": ClassLabel(names=["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"])}
        ),
        row=lambda n: {"text": f"Where is {NAMES[n]} ?", "coarse_label": 4, "fine_label": 35},
        passage="Where is Ann ?",
        question="What type of answer does the question above ask for?",
        choices=[
            "abbreviation",
            "entity",
            "description or abstract concept",
            "human being",
            "location",
            "numeric value",
        ],
        gold="location",
        bad=[({"coarse_label": -1}, MISSING)],
    ),
    "aqua_emotion": Ready(
        load=("dair-ai/emotion", "split", None),
        splits=("train", "test", "validation"),
        features=classification(["sadness", "joy", "love", "anger", "fear", "surprise"], "text"),
        row=lambda n: {"text": f"i dread meeting {NAMES[n]}", "label": 4},
        passage="i dread meeting Ann",
        question="Which emotion does this text express?",
        choices=["sadness", "joy", "love", "anger", "fear", "surprise"],
        gold="fear",
        bad=[({"label": -1}, MISSING)],
    ),
    "aqua_rte": Ready(
        load=("nyu-mll/glue", "rte", None),
        splits=("train", "validation", None),
        features=classification(
            ["entailment", "not_entailment"], "sentence1", "sentence2", idx=INT32
        ),
        row=lambda n: {
            "sentence1": f"{NAMES[n]} runs fast.",
            "sentence2": f"{NAMES[n]} runs.",
            "label": 0,
            "idx": n,
        },
        passage="Premise: Ann runs fast.\nHypothesis: Ann runs.",
        question="Does the hypothesis follow from the premise?",
        choices=["yes", "no"],
        gold="yes",
        bad=[({"label": -1}, MISSING)],
    ),
    "aqua_mnli": Ready(
        load=("nyu-mll/glue", "mnli", None),
        splits=("train", "validation_matched", None),
        features=classification(
            ["entailment", "neutral", "contradiction"], "premise", "hypothesis", idx=INT32
        ),
        row=lambda n: {
            "premise": f"{NAMES[n]} sleeps.",
            "hypothesis": f"{NAMES[n]} is awake.",
            "label": 2,
            "idx": n,
        },
        passage="Premise: Ann sleeps.\nHypothesis: Ann is awake.",
        question="Given the premise, is the hypothesis true or false?",
        choices=["true", "neither", "false"],
        gold="false",
        bad=[({"label": -1}, MISSING)],
    ),
}
MMLU_TASKS = {
    f"aqua_{path.stem}": load_yaml(path, resolve_func=False, recursive=False)
    for path in sorted(MMLU_FOLDER.glob("mmlu_*.yaml"))
}
for name, config in MMLU_TASKS.items():
    READY[name] = Ready(
        load=("cais/mmlu", config["dataset_name"], None),
        splits=("validation", "test", "dev"),
        features=Features(
            {"question": TEXT, "subject": TEXT, "choices": TEXTS}
            | {"answer": ClassLabel(names=list("ABCD"))}
        ),
        row=lambda n: {
            "question": f"How old is {NAMES[n]}?\n",
            "subject": "any",
            "choices": ["3", "5", "7", "2"],
            "answer": 3,
        },
        question="How old is Ann?",
        choices=["3", "5", "7", "2"],
        gold="2",
        bad=[({"choices": ["3", "5", "3", "2"]}, REPEATED)],
    )
DRAWN = {"aqua_sciq", "aqua_truthfulqa_mc1"}
# One MMLU subject for all: that each is loaded is tested last.
EACH = pytest.mark.parametrize(
    "name", [name for name in READY if name not in MMLU_TASKS] + ["aqua_mmlu_virology"]
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def made(ready: Ready) -> datasets.DatasetDict:
    """A data set with all splits.

    Validation has rows 0 and 1 and the bad ones. Selection has the bad ones too, row 1, which the
    validation split has, and 2 to 6 (a data set of one split: 0 to 11). Demonstrations are row 7,
    and row 2, which the selection split has.
    """
    bad = [ready.row(8) | change for change, _ in ready.bad]
    selection, validation, demonstration = ready.splits
    if ready.halved:
        rows = {selection: [ready.row(n) for n in range(12)] + bad}
    else:
        rows = {validation: [ready.row(0), ready.row(1), *bad]}
        rows[selection] = [*bad, *(ready.row(n) for n in range(1, 7))]
        if demonstration is not None:
            rows[demonstration] = [ready.row(7), ready.row(2)]
    return datasets.DatasetDict({split: data_of(ready, rows[split]) for split in rows})


def data_of(ready: Ready, rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows, features=ready.features)


def write_files(data: datasets.DatasetDict, folder: Path) -> dict[str, Any]:
    """`overrides` that make a task read the data from files."""
    files = {split: str(folder / f"{split}.parquet") for split in data}
    for split, file in files.items():
        data[split].to_parquet(file)
    return {"data_files": files}


def manager_of(**metadata: Any) -> TaskManager:
    return TaskManager(
        include_path=str(tasks_dir()), include_defaults=False, metadata=metadata or None
    )


def load(
    name: str, folder: Path, data: datasets.DatasetDict | None = None, **metadata: Any
) -> ConfigurableTask:
    """The task on local files."""
    overrides = write_files(data or made(READY[name]), folder)
    return manager_of(overrides=overrides, **metadata).load([name])["tasks"][name]


def asked(doc: dict[str, Any]) -> str:
    """The prompt of a doc, put together without the package."""
    options = [f"{letter}. {choice}" for letter, choice in zip("ABCDEF", doc["choices"])]  # noqa: B905
    passage = [doc["passage"]] if doc["passage"] else []
    return "\n".join([*passage, f"Question: {doc['question']}", *options, "Answer:"])


def first_row(docs: Any) -> list[dict[str, Any]]:
    """The proxies of row 0, the one question with this name in it."""
    return [doc for doc in docs if "Ann" in f"{doc['passage']} {doc['question']}"]


def ids(docs: Any) -> set[str]:
    return {doc["question_id"] for doc in docs}


# Each task ---------------------------------------------------------------------------------------


@EACH
def test_what_is_asked_is_the_doc(name, tmp_path):
    ready, task = READY[name], load(name, tmp_path)
    docs = list(task.training_docs()) + list(task.test_docs())
    proxies = first_row(docs)
    assert len(proxies) == (2 if len(ready.choices) == 2 else 3)
    for doc in proxies:
        assert (doc["passage"], doc["question"]) == (ready.passage, ready.question)
        assert doc["choices"] == [ready.choices[option] for option in doc["order"]]
        assert doc["choices"][doc["answer"]] == ready.gold
        assert doc["prompt"] == asked(doc)
    assert len({doc["answer"] for doc in proxies}) == len(proxies)
    if name not in DRAWN:
        assert proxies[0]["choices"] == ready.choices


@EACH
def test_requests_have_a_demonstration_that_is_not_asked(name, tmp_path):
    task = load(name, tmp_path)
    task.build_all_requests(rank=0, world_size=1)
    (shown,) = task.sampler.sample(1)
    letter = "ABCDEF"[shown["answer"]]
    n_options = len(READY[name].choices)
    docs = list(task.eval_docs)
    assert len(task.instances) == n_options * len(docs) > 0
    for number, instance in enumerate(task.instances):
        doc = docs[number // n_options]
        prompt = f"{ROLE}{asked(shown)} {letter}\n\n{asked(doc)}"
        assert instance.args == (prompt, f" {'ABCDEF'[number % n_options]}")
        assert task.doc_to_target(doc) == doc["answer"]
    assert ids([shown]).isdisjoint(ids(docs) | ids(task.training_docs()))


@EACH
def test_splits_share_no_question_and_everything_is_counted(name, tmp_path):
    ready, task = READY[name], load(name, tmp_path)
    shown, chosen = ids(task.fewshot_docs()), ids(task.training_docs())
    judged = ids(task.test_docs())
    assert len(shown | chosen | judged) == len(shown) + len(chosen) + len(judged)
    counts = task.config.metadata["counts"]
    assert [counts[role]["split"] for role in ("selection", "validation")] == [*ready.splits[:2]]
    skipped: dict[str, int] = {}
    for _, reason in ready.bad:
        skipped[reason] = skipped.get(reason, 0) + 1
    assert counts["validation"]["skipped"] == skipped
    if ready.halved:
        assert len(shown) + len(chosen) + len(judged) == 12
        assert counts["selection"]["docs"] == counts["validation"]["docs"] == 12 + len(ready.bad)
        return
    # Row 1 is left to the validation split.
    assert counts["selection"]["skipped"] == skipped
    assert counts["selection"]["duplicates_dropped"] == 1
    assert (len(judged), len(chosen) + len(shown)) == (2, 6 if ready.splits[2] else 5)
    if ready.splits[2] is None:
        # Of five questions, half are set aside.
        assert counts["selection"]["demonstrations"] == len(shown) == 2
    else:
        assert counts["demonstration"]["split"] == ready.splits[2]
        assert counts["demonstration"]["duplicates_dropped"] == 1  # row 2
        assert len(shown) == 1


@pytest.mark.parametrize("name", READY)
def test_the_data_set_that_is_loaded(name, monkeypatch):
    ready, calls = READY[name], []

    def load_dataset(path: str, **arguments: Any) -> datasets.DatasetDict:
        calls.append((path, arguments))
        return made(ready)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = manager_of().load([name])["tasks"][name]
    path, config, revision = ready.load
    arguments = {"name": config, "revision": revision, "data_dir": None}
    assert calls == [(path, arguments)] * len(calls)
    assert any(ready.question == doc["question"] for doc in task.test_docs())


# Details -----------------------------------------------------------------------------------------


def test_the_whole_prompt_of_a_question(tmp_path):
    ready = READY["aqua_boolq"]
    data = made(ready)
    data["validation"] = data_of(ready, [ready.row(0)])
    data["shown"] = data_of(ready, [ready.row(9) | {"label": 0}])
    overrides = write_files(data, tmp_path) | {"demonstration_split": "shown"}
    task = manager_of(overrides=overrides).load(["aqua_boolq"])["tasks"]["aqua_boolq"]
    task.build_all_requests(rank=0, world_size=1)
    first = (
        "You are a careful expert. Each question has one right option; answer with its letter.\n"
        "\n"
        "Names -- All of these are names.\n"
        "Question: is Jon a name?\n"
        "A. no\n"
        "B. yes\n"
        "Answer: A\n"
        "\n"
        "Names -- All of these are names.\n"
        "Question: is Ann a name?\n"
        "A. no\n"
        "B. yes\n"
        "Answer:"
    )
    second = first.removesuffix("A. no\nB. yes\nAnswer:") + "A. yes\nB. no\nAnswer:"
    assert [instance.args for instance in task.instances] == [
        (first, " A"),
        (first, " B"),
        (second, " A"),
        (second, " B"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[header] How to [title] Mix it.  [step] Stir  ",
        "[substeps] a [b] c [title] d",
        "  no brackets at all",
        "one [open, and \\ a backslash {{ x }} {% y %}",
        "two\nlines [of\ntext]",
    ],
)
def test_hellaswag_texts_are_those_of_the_harness(text, tmp_path):
    ready = READY["aqua_hellaswag"]
    doc = ready.row(0) | {"ctx_a": text, "endings": [text, "b", "c", "d"]}
    data = made(ready)
    data["validation"] = data_of(ready, [doc])
    proxy = next(iter(load("aqua_hellaswag", tmp_path, data).test_docs()))
    # The harness leaves white space where a bracket stood first or last.
    assert proxy["passage"] == preprocess(f"How Ann paints: {text} The paint").strip()
    assert proxy["choices"] == [preprocess(text).strip(), "b", "c", "d"]


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_where_the_data_tell_the_gold_by_its_place_the_first_order_is_drawn(name, tmp_path):
    task = load(name, tmp_path)
    docs = [*task.training_docs(), *task.test_docs(), *task.fewshot_docs()]
    assert len({doc["answer"] for doc in docs if doc["proxy"] == 0}) > 1


def test_class_labels_more_than_two_are_all_asked(tmp_path):
    for name in ("aqua_trec", "aqua_emotion"):
        task = load(name, tmp_path, n_proxies=6)
        proxies = first_row(task.test_docs())
        assert {doc["answer"] for doc in proxies} == set(range(6))


# Groups ------------------------------------------------------------------------------------------


def read_configs() -> dict[str, dict[str, Any]]:
    """All YAML files of the folder, but what they include, by task or group name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(AQUA.rglob("*.yaml")):
        if not path.name.startswith("_"):
            config = load_yaml(path, resolve_func=False)
            assert path.stem == config.get("group", config["task"])
            assert path.stem not in found
            found[path.stem] = config
    return found


CONFIGS = read_configs()


def leaves(name: str) -> list[str]:
    config = CONFIGS[name]
    if "group" not in config:
        return [name]
    return [leaf for child in config["task"] for leaf in leaves(child)]


def test_every_file_is_a_ready_task_or_group_and_in_aqua_all():
    tasks = [name for name, config in CONFIGS.items() if "group" not in config]
    assert sorted(tasks) == sorted(READY)
    assert sorted(leaves("aqua_all")) == sorted(tasks)
    named = [child for config in CONFIGS.values() if "group" in config for child in config["task"]]
    assert sorted([*named, "aqua_all"]) == sorted(CONFIGS)


def test_the_groups_hold_their_tasks():
    assert leaves("aqua_nlp") == [
        "aqua_ag_news",
        "aqua_boolq",
        "aqua_emotion",
        "aqua_mnli",
        "aqua_rte",
        "aqua_sst2",
        "aqua_trec",
    ]
    assert leaves("aqua_reasoning") == [
        "aqua_commonsense_qa",
        "aqua_hellaswag",
        "aqua_logiqa",
        "aqua_piqa",
        "aqua_social_iqa",
        "aqua_winogrande",
    ]
    assert leaves("aqua_knowledge") == [
        "aqua_arc_easy",
        "aqua_arc_challenge",
        "aqua_openbookqa",
        "aqua_sciq",
        "aqua_truthfulqa_mc1",
        "aqua_medqa",
        "aqua_medmcqa",
        *leaves("aqua_mmlu"),
    ]
    assert len(leaves("aqua_mmlu")) == len(set(leaves("aqua_mmlu"))) == 57


@pytest.mark.parametrize("area", ["stem", "humanities", "social_sciences", "other"])
def test_mmlu_subjects_are_grouped_as_in_the_harness(area):
    theirs = [name for name, config in MMLU_TASKS.items() if config["tag"] == f"mmlu_{area}_tasks"]
    assert leaves(f"aqua_mmlu_{area}") == theirs


def test_groups_aggregate_every_metric():
    groups = [config for config in CONFIGS.values() if "group" in config]
    assert len(groups) == 9
    for config in groups:
        assert config["aggregate_metric_list"] == [
            {"metric": metric, "weight_by_size": True} for metric in METRICS
        ]


def test_a_group_has_values_and_standard_errors(monkeypatch):
    name = "aqua_mmlu_social_sciences"
    data = made(READY["aqua_mmlu_sociology"])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **arguments: data)
    results = simple_evaluate("dummy", tasks=[name], task_manager=manager_of(), bootstrap_iters=0)
    subjects = leaves(name)
    assert set(results["results"]) == {name, *subjects}
    for metric in METRICS:
        # All have as many docs.
        mean = sum(results["results"][task][f"{metric},none"] for task in subjects) / len(subjects)
        assert results["groups"][name][f"{metric},none"] == pytest.approx(mean)
        assert math.isfinite(results["groups"][name][f"{metric}_stderr,none"])
    assert results["configs"][subjects[0]]["metadata"]["counts"]["validation"] == {
        "split": "test",
        "docs": 3,
        "questions": 2,
        "skipped": {REPEATED: 1},
    }


def test_files_are_plain_yaml():
    """Other tools than the harness can read a ready task, as `_aqua.yaml` alone has functions."""
    for path in sorted(AQUA.rglob("aqua_*.yaml")):
        config = yaml.safe_load(path.read_text())
        assert set(config) <= {
            *("include", "task", "dataset_kwargs", "metadata"),
            *("group", "aggregate_metric_list"),
        }


def test_lm_eval_validates_them_all(monkeypatch):
    without_the_harness_tasks(monkeypatch)
    names = ",".join(CONFIGS)
    code, out, err = stock("validate", "--include_path", tasks_dir(), "--tasks", names)
    assert code == 0, out + err
    assert "All tasks found and valid" in out
