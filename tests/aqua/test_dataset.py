"""AQUA tasks: splits that share no question, proxies side by side, and every doc accounted for."""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager

from neuronllm_eval.aqua.cleaning import RawQuestion
from neuronllm_eval.aqua.dataset import PROXY_COLUMNS, AquaSplits, build_splits, load_aqua
from neuronllm_eval.aqua.dataset_source import (
    DEMONSTRATION,
    ROLES,
    SELECTION,
    VALIDATION,
    DatasetSource,
    drawn_rows,
)
from neuronllm_eval.aqua.proxies import (
    ORDERS,
    MultipleChoiceDoc,
    content_key,
    format_question,
    make_proxies,
)
from neuronllm_eval.aqua.settings import AquaSettings
from neuronllm_eval.errors import DocError, TaskError, UsageError

Row = dict[str, Any]


@dataclass
class ListSource:
    """A source whose splits are lists of docs: the fields of a `RawQuestion` but the row."""

    rows: dict[str, list[Row]]
    splits: dict[str, str] = field(default_factory=lambda: {SELECTION: "train", VALIDATION: "test"})

    def read(self, role: str, most: int | None, seed: int, counts: Any):
        rows = self.rows[self.splits[role]]
        for row in drawn_rows(len(rows), most, seed, counts):
            yield RawQuestion(row=row, **rows[row])


def rows(name: str, n_rows: int = 20, n_options: int = 4, **changes: Any) -> list[Row]:
    return [
        {
            "question": f"{name} {i}?",
            "choices": [f"{name} {i} is {k}" for k in range(n_options)],
            "answer": i % n_options,
            **changes,
        }
        for i in range(n_rows)
    ]


def build(
    train: list[Row],
    test: list[Row] | None = None,
    dev: list[Row] | None = None,
    **changes: Any,
) -> AquaSplits:
    """The splits of a source with a training and a test split, or of one that is halved."""
    behind = {SELECTION: "train", VALIDATION: "train" if test is None else "test"}
    if dev is not None:
        behind[DEMONSTRATION] = "dev"
    source = ListSource({"train": train, "test": test or [], "dev": dev or []}, behind)
    return build_splits(source, AquaSettings(**changes))


def asked(splits: AquaSplits, role: str) -> list[str]:
    """The stems of a split's questions, one for each."""
    return [row["question"] for row in splits[role] if row["proxy"] == 0]


def contents(splits: AquaSplits, role: str) -> set[str]:
    return {content_key(row["question"], *row["choices"]) for row in splits[role]}


def shuffled(row: Row) -> Row:
    """The same question with its options turned round, in capitals and widely spaced."""
    last = len(row["choices"]) - 1
    return {
        "question": row["question"].upper().replace(" ", "  "),
        "choices": [f" {choice.title()}\n" for choice in row["choices"][::-1]],
        "answer": last - row["answer"],
    }


# Proxies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orders", ORDERS)
def test_every_question_becomes_its_proxies_side_by_side(orders):
    test = rows("test", passage="Read.")
    splits = build(rows("train"), test, orders=orders, seed=5, letter_style="(A)")
    by_stem = {row["question"]: row for row in test}
    found = list(splits[VALIDATION])
    assert len(found) == 60
    for first in range(0, 60, 3):
        group = found[first : first + 3]
        row = by_stem.pop(group[0]["question"])
        doc = MultipleChoiceDoc(
            group[0]["question_id"], row["question"], tuple(row["choices"]), row["answer"], "Read."
        )
        for shown, proxy in zip(group, make_proxies(doc, 3, 5, orders), strict=True):
            assert shown == {
                "question_id": proxy.question_id,
                "proxy": proxy.proxy,
                "n_proxies": 3,
                "order": list(proxy.order),
                "question": proxy.question,
                "passage": "Read.",
                "choices": list(proxy.choices),
                "answer": proxy.answer,
                "letters": ["A", "B", "C", "D"],
                "prompt": format_question(proxy, "(A)"),
                "group": "",
            }
    assert not by_stem


@pytest.mark.parametrize("role", ROLES)
def test_all_splits_have_the_columns_of_the_proxies_even_if_empty(role):
    full, empty = build(rows("train"), rows("test")), build(rows("train"), rows("test"), dev=[])
    assert full[role].column_names == list(PROXY_COLUMNS)
    assert full[role].features == empty[role].features
    assert len(empty[DEMONSTRATION]) == 0


@pytest.mark.parametrize("n_options", range(2, 14))
@pytest.mark.parametrize("is_label", [False, True])
def test_two_to_thirteen_options_are_asked(n_options, is_label):
    train, test = (rows(name, 30, n_options, is_label=is_label) for name in ("train", "test"))
    splits = build(train, test, n_proxies=4)
    n_left = min(n_options, 8) if is_label else n_options
    golds = {row["question"]: row["choices"][row["answer"]] for row in test}
    for row in splits[VALIDATION]:
        assert len(row["choices"]) == len(row["letters"]) == n_left
        assert row["choices"][row["answer"]] == golds[row["question"]]
        assert row["n_proxies"] == min(4, {2: 2, 3: 6}.get(n_left, 4))
    for role in (SELECTION, VALIDATION):
        assert splits.counts[role].get("options_cut", 0) == (30 if n_left < n_options else 0)


def test_questions_of_different_numbers_of_options_in_one_split():
    test = [row for n in (2, 5, 13) for row in rows(f"of {n}", 3, n)]
    splits = build(rows("train"), test, n_proxies=5)
    found = Counter((len(row["choices"]), row["n_proxies"]) for row in splits[VALIDATION])
    assert found == {(2, 2): 6, (5, 5): 15, (13, 5): 15}


def test_all_shows_each_question_as_often_as_it_has_options():
    test = [*rows("three", 2, 3), *rows("five", 2, 5)]
    found = list(build(rows("train"), test, n_proxies="all")[VALIDATION])
    assert [row["n_proxies"] for row in found] == [len(row["choices"]) for row in found]
    golds: dict[str, list[int]] = {}
    for row in found:
        golds.setdefault(row["question"], []).append(row["answer"])
    assert sorted(map(sorted, golds.values())) == [[0, 1, 2]] * 2 + [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("distractors", ["random", "length"])
def test_questions_without_options_are_filled_up(distractors):
    splits = build(rows("train", n_options=1), rows("test", n_options=1), distractors=distractors)
    for role, name in ((SELECTION, "train"), (VALIDATION, "test")):
        assert splits.counts[role]["distractors_added"] == 20
        for row in splits[role]:
            assert len(row["choices"]) == 4
            # The pool is that of the split.
            assert all(choice.startswith(name) for choice in row["choices"])
            assert row["choices"][row["answer"]] == f"{row['question'][:-1]} is 0"


# Bad docs ---------------------------------------------------------------------------------------


def test_bad_docs_are_skipped_and_counted_and_warned_of(caplog):
    bad = [{**row, "answer": 9} for row in rows("bad", 2)] + rows("short", 1, 1)
    with caplog.at_level("WARNING"):
        splits = build([*rows("train"), *bad], rows("test"))
    gold = "gold missing or out of range"
    assert splits.counts[SELECTION]["skipped"] == {"fewer than 2 options": 1, gold: 2}
    assert "skipped" not in splits.counts[VALIDATION]
    assert [record.getMessage() for record in caplog.records] == [
        "split train: 3 of 23 docs cannot be used and are skipped: "
        f"{gold} (2), fewer than 2 options (1)"
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_with_fail_a_bad_doc_of_either_split_ends_the_run(split):
    data = {"train": rows("train"), "test": rows("test")}
    data[split][8]["choices"] = ["x", "x"]
    with pytest.raises(DocError, match=rf"^split '{split}', row 8: .* has the same text 'x'"):
        build(**data, on_bad_doc="fail")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_bad_docs_alone_ends_the_run_with_the_reasons(split):
    data = {"train": rows("train"), "test": rows("test")}
    for row in data[split]:
        row["answer"] = None
    message = (
        rf"no usable question among the 20 docs of split '{split}': 20 skipped \(gold missing or "
        r"out of range\); the first: row 0 \(from 0\): the gold None \(missing\) is none of"
    )
    with pytest.raises(TaskError, match=message + r".*\nExpected: at least one\.\nRemedy: check"):
        build(**data)


def test_an_empty_split_ends_the_run():
    with pytest.raises(TaskError, match=r"no usable question among the 0 docs of split 'test'\."):
        build_splits(ListSource({"train": rows("train"), "test": []}), AquaSettings())


# Separation -------------------------------------------------------------------------------------


def test_questions_of_the_validation_split_are_dropped_from_the_selection():
    train, test = rows("train"), rows("test")
    splits = build([*train, test[0], *map(shuffled, test[1:5])], test, n_demonstrations=0)
    assert sorted(asked(splits, SELECTION)) == sorted(row["question"] for row in train)
    assert splits.counts[SELECTION] == {
        "split": "train",
        "docs": 25,
        "questions": 20,
        "duplicates_dropped": 5,
    }
    assert splits.counts[VALIDATION] == {"split": "test", "docs": 20, "questions": 20}


def test_another_passage_makes_another_question():
    train, test = rows("same", passage="One."), rows("same", passage="Two.")
    splits = build(train, test, n_demonstrations=0)
    assert len(asked(splits, SELECTION)) == 20


@pytest.mark.parametrize(
    ("n_options", "changes"),
    [
        (6, {"n_options": 3}),
        (2, {"n_options": 6, "distractors": "random"}),
        (1, {"distractors": "length"}),
    ],
)
def test_duplicates_are_found_whatever_options_were_drawn(n_options, changes):
    # Pools and content ids differ between the splits, and so do the options drawn.
    test = rows("test", n_options=n_options)
    train = [*rows("train", n_options=n_options), *map(shuffled, test)]
    splits = build(train, test, n_demonstrations=0, **changes)
    assert splits.counts[SELECTION]["duplicates_dropped"] == 20
    assert all(stem.startswith("train") for stem in asked(splits, SELECTION))


def test_a_split_that_the_validation_split_holds_leaves_no_selection():
    test = rows("test")
    with pytest.raises(TaskError, match=r"of split 'train': 20 duplicates dropped\."):
        build(list(map(shuffled, test)), test)


@pytest.mark.parametrize(
    "changes", [{}, {"n_options": 2}, {"n_options": 6, "distractors": "random"}]
)
def test_halves_share_no_question_and_do_not_depend_on_the_seed(changes):
    data = rows("one", 100)
    data += [shuffled(row) for row in data[:40]]
    halves = []
    for seed in range(3):
        splits = build(data, seed=seed, n_demonstrations=0, **changes)
        judging, choosing = (
            {stem.lower().replace("  ", " ") for stem in asked(splits, role)}
            for role in (VALIDATION, SELECTION)
        )
        assert not judging & choosing
        assert len(judging | choosing) == 100
        # 50 of 100 are expected, standard deviation 5.
        assert 30 <= len(judging) <= 70
        assert len(asked(splits, VALIDATION)) + len(asked(splits, SELECTION)) == 140
        assert splits.counts[VALIDATION]["docs"] == splits.counts[SELECTION]["docs"] == 140
        halves.append(judging)
    assert halves[0] == halves[1] == halves[2]


def test_the_half_of_a_question_does_not_depend_on_the_others():
    data = rows("one", 100)
    whole, part = build(data), build(data[:50])
    assert set(asked(part, VALIDATION)) <= set(asked(whole, VALIDATION))


# Demonstrations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_wanted", "n_shown"), [(0, 0), (3, 3), (8, 8), (50, 10)])
def test_demonstrations_are_set_aside_from_half_the_selection_at_most(n_wanted, n_shown):
    splits = build(rows("train"), rows("test"), n_demonstrations=n_wanted)
    shown, choosing = asked(splits, DEMONSTRATION), asked(splits, SELECTION)
    assert (len(shown), len(choosing)) == (n_shown, 20 - n_shown)
    assert not set(shown) & set(choosing)
    assert splits.counts[SELECTION].get("demonstrations", 0) == n_shown
    assert splits.counts[DEMONSTRATION]["questions"] == n_shown


def test_a_duplicate_of_a_demonstration_is_not_asked():
    train = rows("train", 10)
    splits = build([*train, *map(shuffled, train)], rows("test"), n_demonstrations=5)
    assert not contents(splits, DEMONSTRATION) & contents(splits, SELECTION)
    counts = splits.counts[SELECTION]
    assert counts["duplicates_dropped"] > 0
    assert counts["questions"] == 20 - 5 - counts["duplicates_dropped"]


@pytest.mark.parametrize("halve", [False, True])
def test_a_split_of_demonstrations_shows_what_is_asked_nowhere_else(halve):
    train, test = rows("train"), None if halve else rows("test")
    dev = [*rows("dev", 5), shuffled(train[0]), shuffled((test or train)[1])]
    splits = build(train, test, dev)
    assert sorted(asked(splits, DEMONSTRATION)) == [f"dev {i}?" for i in range(5)]
    assert splits.counts[DEMONSTRATION] == {
        "split": "dev",
        "docs": 7,
        "questions": 5,
        "duplicates_dropped": 2,
    }
    assert "demonstrations" not in splits.counts[SELECTION]


@pytest.mark.parametrize("orders", ORDERS)
def test_each_demonstration_is_shown_once_and_golds_stand_at_every_place(orders):
    splits = build(rows("train"), rows("test"), rows("dev", 80), orders=orders, seed=1)
    shown = splits[DEMONSTRATION]
    assert len(set(shown["question"])) == len(shown) == 80
    assert set(shown["n_proxies"]) == {1}
    # 20 under each letter: exactly so in the order of the data; standard deviation 3.9 if drawn.
    assert all(5 <= list(shown["answer"]).count(place) <= 35 for place in range(4))


# Orders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_docs", "moved", "orders"),
    [(20, 0, "drawn"), (19, 0, "original"), (20, 1, "original"), (200, 1, "original")],
)
def test_orders_are_drawn_where_the_gold_has_one_place_throughout(n_docs, moved, orders):
    train = [{**row, "answer": 2} for row in rows("train", 10)]
    test = [{**row, "answer": 2} for row in rows("test", n_docs - 10)]
    for row in test[:moved]:
        row["answer"] = 0
    splits = build(train, test, rows("dev"))
    assert splits.settings.orders == orders
    explicit = build(train, test, rows("dev"), orders=orders)
    for role in ROLES:
        assert splits[role].to_list() == explicit[role].to_list()


@pytest.mark.parametrize("orders", ORDERS)
def test_orders_that_are_set_are_kept_wherever_the_gold_is(orders):
    train, test = ([{**row, "answer": 0} for row in rows(name, 20)] for name in ("train", "test"))
    assert build(train, test, orders=orders).settings.orders == orders


# Draws ------------------------------------------------------------------------------------------


def test_no_more_than_max_selection_docs_of_the_selection_alone_are_read():
    drawn = []
    for seed in (0, 0, 1):
        splits = build(rows("train", 50), rows("test", 50), seed=seed, max_selection=20)
        assert splits.counts[SELECTION]["docs"] == 20
        assert splits.counts[SELECTION]["not_drawn"] == 30
        assert splits.counts[VALIDATION] == {"split": "test", "docs": 50, "questions": 50}
        drawn.append(set(asked(splits, SELECTION) + asked(splits, DEMONSTRATION)))
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_seed_changes_orders_but_not_which_questions_judge():
    zero, one = (build(rows("train"), rows("test"), seed=seed) for seed in (0, 1))
    stems = [asked(splits, VALIDATION) for splits in (zero, one)]
    assert stems[0] != stems[1]
    assert sorted(stems[0]) == sorted(stems[1])
    orders = [
        {(row["question"], tuple(row["order"])) for row in s[VALIDATION]} for s in (zero, one)
    ]
    assert orders[0] != orders[1]
    assert build(rows("train"), rows("test"))[VALIDATION].to_list() == zero[VALIDATION].to_list()


def test_neither_the_order_of_the_rows_nor_the_number_of_proxies_changes_the_order_of_questions():
    forward = build(rows("train"), rows("test"))
    back = build(rows("train")[::-1], rows("test")[::-1], n_proxies=1)
    for role in ROLES:
        assert asked(forward, role) == asked(back, role)


def test_a_prefix_of_sorted_data_has_all_labels():
    # 200 questions sorted by gold: 10 of each gold are expected among the first 40, standard
    # deviation 2.4.
    test = [{**row, "answer": i // 50} for i, row in enumerate(rows("test", 200))]
    golds = {row["question"]: row["answer"] for row in test}
    first = asked(build(rows("train"), test), VALIDATION)[:40]
    counts = Counter(golds[stem] for stem in first)
    assert all(counts[gold] >= 3 for gold in range(4))


# Any data ---------------------------------------------------------------------------------------

words = st.sampled_from(["x", "y", "z", "X ", "w", ""])
any_rows = st.lists(
    st.fixed_dictionaries(
        {
            "question": st.sampled_from(["p?", "q?", "P?", ""]),
            "choices": st.lists(words, max_size=4),
            "answer": st.integers(-1, 3),
        }
    ),
    max_size=14,
)


@settings(max_examples=60)
@given(train=any_rows, test=any_rows, dev=st.none() | any_rows, n_shown=st.integers(0, 4))
def test_every_doc_is_counted_once_and_no_question_stands_in_two_splits(train, test, dev, n_shown):
    good = {"question": "good?", "choices": ["a", "b"], "answer": 0}
    better = {**good, "question": "better?"}
    if dev is not None:  # none of whose golds may seem to count from 1
        dev = [{**good, "question": "best?"}, *dev]
    splits = build([good, *train], [better, *test], dev, n_demonstrations=n_shown)
    found = [contents(splits, role) for role in ROLES]
    assert sum(map(len, found)) == len(set().union(*found))
    for role in ROLES:
        counts = splits.counts[role]
        assert counts["questions"] == len(asked(splits, role))
        if role != DEMONSTRATION or dev is not None:
            gone = ("questions", "duplicates_dropped", "demonstrations")
            accounted = sum(counts.get(name, 0) for name in gone)
            assert counts["docs"] == accounted + sum(counts.get("skipped", {}).values())


# Loading ----------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return {name: write(tmp_path / f"{name}.jsonl", rows(name, 6)) for name in ("train", "test")}


def write(file: Path, docs: Sequence[Row]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in docs))
    return str(file)


def test_counts_are_put_into_the_dict_of_the_metadata(files):
    counts: dict[str, Any] = {}
    splits = load_aqua(
        data_files=files, counts=counts, version=1.0, pretrained="gpt2", dtype="auto"
    )
    assert counts == {**splits.counts, "asked": splits.settings.model_dump()}
    assert counts[VALIDATION] == {"split": "test", "docs": 6, "questions": 6}


def test_what_is_loaded_is_what_is_built(files):
    loaded = load_aqua(data_files=files, n_proxies=2, seed=4)
    built = build_splits(DatasetSource(data_files=files), AquaSettings(n_proxies=2, seed=4))
    assert loaded.settings == built.settings == AquaSettings(n_proxies=2, seed=4, orders="original")
    for role in ROLES:
        assert loaded[role].to_list() == built[role].to_list()


def test_overrides_go_before_settings_and_source(files):
    overrides = {"n_proxies": 4, "selection_split": "test", "validation_split": "train"}
    splits = load_aqua(data_files=files, n_proxies=2, seed=3, overrides=overrides)
    assert (splits.settings.n_proxies, splits.settings.seed) == (4, 3)
    assert splits.counts[SELECTION]["split"] == "test"
    assert all(stem.startswith("train") for stem in asked(splits, VALIDATION))


def test_empty_overrides_and_labels_are_none(files):
    splits = load_aqua(data_files=files, overrides=None, labels=None)
    assert splits.settings == AquaSettings(orders="original")


@pytest.mark.parametrize("where", ["values", "overrides"])
def test_a_slip_in_a_setting_is_refused_with_the_close_name(files, where):
    slip = {"n_proxie": 2}
    values = slip if where == "values" else {"overrides": slip}
    with pytest.raises(UsageError, match=r"'n_proxie' is unknown\.\nExpected: 'n_proxies'"):
        load_aqua(data_files=files, **values)


def test_settings_are_checked_before_data_are_read():
    with pytest.raises(UsageError, match=r"n_proxies is 0"):
        load_aqua(data_files={"train": "no_such.json", "test": "no_such.json"}, n_proxies=0)


def test_labels_of_the_yaml_are_the_options(files):
    splits = load_aqua(data_files=files, labels=["no", "yes", "maybe", "never"])
    assert {tuple(sorted(row["choices"])) for row in splits[VALIDATION]} == {
        ("maybe", "never", "no", "yes")
    }


def test_one_split_is_refused_without_halve_and_halved_with_it(files):
    with pytest.raises(
        TaskError, match=r"is also the validation split\.\nExpected: different docs"
    ):
        load_aqua(data_files=files, selection_split="test")
    splits = load_aqua(data_files=files, selection_split="test", halve=True, n_demonstrations=0)
    assert len(asked(splits, SELECTION)) + len(asked(splits, VALIDATION)) == 6


def test_data_are_read_once(files, monkeypatch):
    first = load_aqua(data_files=files)
    monkeypatch.setattr(DatasetSource, "read", None)
    assert load_aqua(data_files=files) is first


def test_a_changed_file_is_read_anew(files):
    load_aqua(data_files=files)
    write(Path(files["test"]), rows("changed", 6))
    os.utime(files["test"], ns=(1, 1))
    assert all(
        stem.startswith("changed") for stem in asked(load_aqua(data_files=files), VALIDATION)
    )


def test_other_settings_and_other_files_are_not_taken_from_before(files, tmp_path):
    assert len(load_aqua(data_files=files, n_proxies=1)[VALIDATION]) == 6
    assert len(load_aqua(data_files=files, n_proxies=2)[VALIDATION]) == 12
    other = {**files, "test": write(tmp_path / "other.jsonl", rows("other", 5))}
    assert len(load_aqua(data_files=other, n_proxies=2)[VALIDATION]) == 10


def test_paths_of_files_may_be_path_objects(files):
    paths = {name: Path(file) for name, file in files.items()}
    assert len(asked(load_aqua(data_files=paths), VALIDATION)) == 6


# In the harness ---------------------------------------------------------------------------------

TASK = """
    task: NAME
    custom_dataset: !function neuronllm_eval.aqua.dataset.load_aqua
    dataset_kwargs:
      data_files: FILES
      dataset_revision: main
    output_type: multiple_choice
    training_split: selection
    test_split: validation
    fewshot_split: demonstration
    fewshot_config: {sampler: first_n}
    doc_to_text: prompt
    doc_to_choice: letters
    doc_to_target: answer
    metadata: {version: 1.0, n_proxies: 2, counts: {}}
"""


def harness_tasks(
    folder: Path, files: dict[str, str], metadata: Row, *names: str
) -> dict[str, Any]:
    for name in names:
        text = textwrap.dedent(TASK).replace("NAME", name).replace("FILES", json.dumps(files))
        (folder / f"{name}.yaml").write_text(text)
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    return manager.load(list(names))["tasks"]


def test_the_harness_asks_the_proxies_and_keeps_the_counts(files, tmp_path):
    model_arguments = {"pretrained": "gpt2", "dtype": "float32", "revision": "step1000"}
    both = harness_tasks(tmp_path, files, {**model_arguments, "n_proxies": 4}, "aqua_one")
    task = both["aqua_one"]
    docs = list(task.test_docs())
    assert len(docs) == 24
    assert task.doc_to_text(docs[5]) == docs[5]["prompt"]
    assert task.doc_to_choice(docs[5]) == ["A", "B", "C", "D"]
    assert task.doc_to_target(docs[5]) == docs[5]["answer"]
    assert task.dump_config()["metadata"]["counts"][VALIDATION]["questions"] == 6


def test_two_tasks_of_the_harness_have_their_own_counts(files, tmp_path):
    first = harness_tasks(tmp_path, files, {}, "aqua_one")["aqua_one"]
    write(Path(files["test"]), rows("test", 5))
    second = harness_tasks(tmp_path, files, {}, "aqua_two")["aqua_two"]
    found = [task.dump_config()["metadata"]["counts"] for task in (first, second)]
    assert [counts[VALIDATION]["questions"] for counts in found] == [6, 5]


# Nearly the same question -----------------------------------------------------------------------

LONG_STEM = "Which of these gases do green plants take up in the light?"


@pytest.mark.parametrize(
    ("stem", "dropped"), [(LONG_STEM, 1), (LONG_STEM.upper() + "!", 1), ("Which gas is it?", 0)]
)
def test_a_long_stem_with_the_same_right_option_is_the_same_question(stem, dropped):
    chosen = {"question": stem, "choices": ["carbon dioxide", "neon"], "answer": 0}
    judged_stem = LONG_STEM if dropped else stem
    judged = {"question": judged_stem, "choices": ["argon", "Carbon dioxide."], "answer": 1}
    rows = [{"question": f"q {i}", "choices": ["x", "y"], "answer": i % 2} for i in range(4)]
    splits = build([chosen, *rows[:2]], [judged, *rows[2:]], n_demonstrations=0)
    assert splits.counts[SELECTION].get("duplicates_dropped", 0) == dropped
    assert (stem in asked(splits, SELECTION)) is not bool(dropped)


def test_a_long_stem_with_another_right_option_is_another_question():
    chosen = {"question": LONG_STEM, "choices": ["carbon dioxide", "neon"], "answer": 0}
    splits = build([chosen], [{**chosen, "answer": 1, "choices": ["helium", "oxygen"]}])
    assert "duplicates_dropped" not in splits.counts[SELECTION]


def test_each_half_says_where_the_other_questions_went():
    rows = [{"question": f"q {i}", "choices": ["x", "y"], "answer": i % 2} for i in range(40)]
    bad = {"question": "bad", "choices": ["x", "x"], "answer": 0}
    counts = build([*rows, bad], n_demonstrations=0).counts
    for role, other in ((SELECTION, VALIDATION), (VALIDATION, SELECTION)):
        assert counts[role]["docs"] == 41
        assert counts[role]["skipped"] == {"repeated options": 1}
        assert counts[role]["other_half"] == counts[other]["questions"]


# Overrides --------------------------------------------------------------------------------------


def test_choices_override_labels_and_null_takes_a_setting_back(files):
    own = {"labels": ["x", "y"], "passage": "{{ question }}", "data_files": files}
    plain = load_aqua(data_files=files)
    overrides = {"choices": "choices", "passage": None}
    assert (
        load_aqua(**own, overrides=overrides)[VALIDATION].to_list() == plain[VALIDATION].to_list()
    )
