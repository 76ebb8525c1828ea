"""Sources: local files of each kind, the Hub's arguments, and docs read by Jinja expressions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from neuronllm_eval.aqua.cleaning import DocCounts, RawQuestion
from neuronllm_eval.aqua.dataset_source import (
    DEMONSTRATION,
    SELECTION,
    VALIDATION,
    DatasetSource,
    drawn_rows,
    located_files,
)
from neuronllm_eval.errors import DocError, TaskError

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"id": "q0", "question": "Capital of Peru?", "choices": ["Lima", "Oslo"], "answer": 0},
    {"id": "q1", "question": "Capital of Italy?", "choices": ["Bern", "Rome"], "answer": 1},
    {"id": "q2", "question": "Capital of Norway?", "choices": ["Oslo", "Bern"], "answer": 0},
]


@pytest.fixture
def splits(monkeypatch):
    """Puts rows where a source's `load` finds them, and gives the source."""

    def put(rows: Rows, features: datasets.Features | None = None, **changes: Any) -> DatasetSource:
        data = datasets.Dataset.from_list(rows, features=features)
        monkeypatch.setattr(
            "neuronllm_eval.aqua.dataset_source._given",
            lambda **_: {"train": data, "test": data},
            raising=False,
        )
        return DatasetSource(load="neuronllm_eval.aqua.dataset_source._given", **changes)

    return put


def read(source: DatasetSource, role: str = VALIDATION, most: int | None = None, seed: int = 0):
    return list(source.read(role, most, seed, DocCounts("test")))


def plain(raws: list[RawQuestion]) -> list[tuple]:
    return [(raw.row, raw.question, raw.choices, raw.answer) for raw in raws]


EXPECTED = [(i, row["question"], row["choices"], row["answer"]) for i, row in enumerate(ROWS)]


# Local files ------------------------------------------------------------------------------------


def write(file: Path, rows: Rows) -> str:
    if file.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(file))
    elif file.suffix in (".csv", ".tsv"):
        # One column for each option, as such files have it.
        flat = [
            {
                "question": row["question"],
                "answer": row["answer"],
                **dict(zip("ab", row["choices"], strict=True)),
            }
            for row in rows
        ]
        with file.open("w", newline="") as stream:
            delimiter = "\t" if file.suffix == ".tsv" else ","
            writer = csv.DictWriter(stream, list(flat[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(flat)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read_back(tmp_path, kind: str, rows: Rows) -> list[Any]:
    """The questions of such a file."""
    path = write(tmp_path / f"texts.{kind}", rows)
    choices = "[a, b]" if kind in ("csv", "tsv") else "choices"
    return read(DatasetSource(data_files={"train": path, "test": path}, choices=choices))


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv"])
def test_texts_stay_as_they_are_written(tmp_path, kind):
    texts = ["NA", "null", "2020-01-02", "1.50", "007", "", "True", "a\u2028b"]
    rows = [{"question": f"Which {text}?", "choices": [text, "other"], "answer": i % 2}
            for i, text in enumerate(texts)]  # fmt: skip
    found = read_back(tmp_path, kind, rows)
    assert [raw.choices[0] for raw in found] == texts
    assert [raw.question for raw in found] == [f"Which {text}?" for text in texts]
    assert [raw.answer for raw in found] == [0, 1] * 4  # in a csv file a text of digits


def test_a_row_with_more_cells_than_the_head_is_refused(tmp_path):
    """Pandas would take the first cells for an index, and every column for the next one."""
    path = tmp_path / "long.csv"
    path.write_text("question,a,b,answer\nq1,x,y,0,\nq2,x,y,1,\n")
    with pytest.raises(TaskError, match="more cells than the head"):
        read(DatasetSource(data_files={"train": str(path), "test": str(path)}, choices="[a, b]"))


def test_a_number_in_a_csv_file_is_an_index_unless_it_is_an_option(tmp_path):
    answers = ("0", "true", "5", "1")
    rows = [{"question": "?", "choices": ["1", "5"], "answer": answer} for answer in answers]
    *found, ambiguous = read_back(tmp_path, "csv", rows)
    assert [raw.answer for raw in found] == [0, 1, "5"]
    assert isinstance(ambiguous, DocError)
    assert ambiguous.reason == "gold ambiguous"


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "csv", "tsv"])
def test_local_files(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = {
        "train": write(tmp_path / f"one.{kind}", ROWS[:1]),
        "test": write(tmp_path / f"two.{kind}", ROWS),
    }
    expressions = {"choices": "[a, b]"} if kind in ("csv", "tsv") else {}
    source = DatasetSource(data_files=files, **expressions)
    assert plain(read(source)) == EXPECTED
    assert plain(read(source, SELECTION)) == EXPECTED[:1]


@pytest.mark.parametrize(
    ("names", "found"),
    [(["a.json", "b.csv"], "csv, json"), (["a.xlsx"], "xlsx"), (["a.csv", "b.tsv"], "csv, tsv")],
)
def test_files_of_mixed_or_unknown_kinds_are_refused(names, found, tmp_path):
    files = dict(zip(("test", "train"), (str(tmp_path / name) for name in names), strict=False))
    message = rf"of the types {found}\.\nExpected: all of one type: json, .*\nRemedy: convert"
    with pytest.raises(TaskError, match=message):
        read(DatasetSource(data_files=files))


# The Hub and other loaders ----------------------------------------------------------------------


def test_the_hub_gets_path_name_revision_and_folder(monkeypatch):
    calls = []

    def load_dataset(*args: Any, **kwargs: Any) -> dict[str, datasets.Dataset]:
        calls.append((args, kwargs))
        return {"train": datasets.Dataset.from_list(ROWS)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = DatasetSource(
        path="allenai/ai2_arc", name="ARC-Easy", dataset_revision="refs/x", data_dir="here"
    )
    assert plain(read(source, SELECTION)) == EXPECTED
    kwargs = {"name": "ARC-Easy", "revision": "refs/x", "data_dir": "here"}
    assert calls == [(("allenai/ai2_arc",), kwargs)]


def test_a_function_gives_the_splits_and_gets_its_arguments(monkeypatch):
    def given(first: int, last: int) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(ROWS[first:last])}

    monkeypatch.setattr("neuronllm_eval.aqua.dataset_source._given", given, raising=False)
    source = DatasetSource(
        load="neuronllm_eval.aqua.dataset_source._given", load_kwargs={"first": 1, "last": 3}
    )
    assert [raw.question for raw in read(source)] == ["Capital of Italy?", "Capital of Norway?"]


@pytest.mark.parametrize("load", ["no_such_module.f", "json.no_such_function", "splits"])
def test_a_function_that_cannot_be_imported_is_refused(load):
    message = rf"load is '{load}': .*\nExpected: module\.function .*\nRemedy: fix load"
    with pytest.raises(TaskError, match=message):
        read(DatasetSource(load=load))


def test_a_task_without_data_is_refused():
    with pytest.raises(TaskError, match=r"names no data\.\nExpected: path, data_files or load"):
        DatasetSource()


# Splits -----------------------------------------------------------------------------------------


def test_the_split_behind_each_role():
    source = DatasetSource(path="x", selection_split="dev", validation_split="val")
    assert source.splits == {SELECTION: "dev", VALIDATION: "val"}
    with_third = DatasetSource(path="x", demonstration_split="third")
    assert with_third.splits == {SELECTION: "train", VALIDATION: "test", DEMONSTRATION: "third"}


@pytest.mark.parametrize(
    ("selection", "halve", "message"),
    [
        ("test", False, "the selection split 'test' is also the validation split"),
        ("train", True, "halve is set, but selection_split is 'train' and validation_split 'test'"),
    ],
)
def test_halve_goes_with_one_split_for_both_and_with_that_alone(selection, halve, message):
    with pytest.raises(TaskError, match=message):
        DatasetSource(path="x", selection_split=selection, validation_split="test", halve=halve)


def test_a_missing_split_is_named_with_those_there_are(splits):
    source = splits(ROWS, selection_split="trian")
    with pytest.raises(TaskError, match=r"no split 'trian'\.\nExpected: one of train, test\."):
        read(source, SELECTION)


# Expressions ------------------------------------------------------------------------------------


def test_nested_columns_as_arc_has_them(splits):
    rows = [
        {
            "question": "Which?",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        }
    ]
    source = splits(rows, choices="choices.text", answer="choices.label.index(answerKey)")
    assert plain(read(source)) == [(0, "Which?", ["x", "y", "z"], 2)]


def test_templates_put_columns_into_text(splits):
    rows = [{"stem": "Lima", "text": "A city.\n", "n": 2, "key": 7}]
    source = splits(
        rows,
        question="Where is {{ stem }}?",
        passage="Text: {{ text }}",
        choices="['p', 'q']",
        answer="n - 1",
        id="'row-' ~ key",
    )
    assert read(source) == [
        RawQuestion(0, "Where is Lima?", ["p", "q"], 1, "Text: A city.\n", "row-7", False)
    ]


def test_jinja_functions_are_no_columns(splits):
    source = splits(ROWS, answer="range(answer, 9) | first", id="dict(a=id).a")
    assert [(raw.answer, raw.id) for raw in read(source)] == [(0, "q0"), (1, "q1"), (0, "q2")]


def test_text_of_the_data_is_no_template(splits):
    rows = [{**ROWS[0], "question": "{{ answer }} {% if %}"}]
    assert read(splits(rows))[0].question == "{{ answer }} {% if %}"


LEADS_TO_CODE = (
    "''.__class__.__mro__[1].__subclasses__()",
    "cycler.__init__.__globals__.os.mkdir('made')",
    "(question.format)('{0.__class__}')",
    "'{0.__class__}'.format(1)",
)


@pytest.mark.parametrize("expression", LEADS_TO_CODE)
def test_templates_reach_no_code(splits, expression):
    for settings in ({"question": f"{{{{ {expression} }}}}"}, {"answer": expression}):
        (doc, *_) = read(splits(ROWS, **settings))
        if isinstance(doc, RawQuestion):  # undefined or empty
            assert "class" not in f"{doc.question}{doc.answer}", doc
        else:
            assert "SecurityError" in doc.found


def test_regex_replace(splits):
    rows = [{**ROWS[0], "question": "Capital [note] of [2] Peru?"}]
    clean = splits(rows, question=r"{{ question | regex_replace('\\[.*?\\] ') }}")
    assert read(clean)[0].question == "Capital of Peru?"
    swapped = splits(rows, question=r"{{ question | regex_replace('\\[(.*?)\\]', '<\\1>') }}")
    assert read(swapped)[0].question == "Capital <note> of <2> Peru?"


@pytest.mark.parametrize("id_expression", [None, "key"])
def test_a_question_without_an_id_has_none(splits, id_expression):
    rows = [{**ROWS[0], "key": None}, {**ROWS[1], "key": "k"}]
    expected = [None, "k"] if id_expression else [None, None]
    assert [raw.id for raw in read(splits(rows, id=id_expression))] == expected


def test_a_missing_text_is_empty_rather_than_none(splits):
    rows = [{**ROWS[0], "question": None, "text": None}, {**ROWS[1], "text": "Read."}]
    raws = read(splits(rows, passage="{{ text }}"))
    assert [(raw.question, raw.passage) for raw in raws] == [
        ("", ""),
        ("Capital of Italy?", "Read."),
    ]


def test_labels_are_the_options_of_every_question_and_class_label_columns_their_gold(splits):
    features = datasets.Features(
        {"question": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = [{"question": "Dull.", "label": 0}, {"question": "Fine.", "label": 1}]
    source = splits(rows, features, labels=("bad", "good"), answer="label")
    assert plain(read(source)) == [
        (0, "Dull.", ["bad", "good"], 0),
        (1, "Fine.", ["bad", "good"], 1),
    ]
    assert all(raw.is_label for raw in read(source))
    assert not any(raw.is_label for raw in read(splits(ROWS)))


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("question", "{{ stem }}"),
        ("passage", "{{ stem }}"),
        ("choices", "stem.text"),
        ("answer", "stem | int"),
        ("id", "stem"),
    ],
)
def test_a_column_that_is_not_there_ends_the_run_naming_those_that_are(splits, name, expression):
    source = splits(ROWS, **{name: expression})
    columns = "id, question, choices, answer"
    with pytest.raises(TaskError, match=rf"no column 'stem' among .* columns {columns}\.\nExpect"):
        read(source)


@pytest.mark.parametrize("name", ["question", "passage", "choices", "answer", "id"])
@pytest.mark.parametrize("invalid", ["question ||", "question | nofilter", "question is notest"])
def test_invalid_jinja_is_refused_before_any_doc_is_read(splits, name, invalid):
    text = f"{{{{ {invalid} }}}}" if name in ("question", "passage") else invalid
    with pytest.raises(TaskError, match=r" is not valid Jinja: .*\nExpected: a template .*\nRem"):
        read(splits(ROWS, **{name: text}))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"answer": "choices.index(question)"}, "ValueError"),
        ({"question": "{{ choices[0].upper() ~ none.x.y }}"}, "UndefinedError"),
        ({"id": "choices.nothing"}, "UndefinedError"),
        ({"question": "{{ choices.nothing }}"}, "UndefinedError"),
    ],
)
def test_what_fails_on_every_doc_is_an_error_for_each(splits, changes, error):
    raws = read(splits(ROWS, **changes))
    assert [(type(raw), raw.reason) for raw in raws] == [(DocError, "unreadable")] * 3
    for row, raw in enumerate(raws):
        assert raw.found.startswith(f"row {row} cannot be read: {error}: ")


def test_an_expression_that_fails_on_one_doc_is_an_error_for_that_doc(splits):
    rows = [*ROWS[:1], {**ROWS[1], "choices": ["Bern", "Paris"]}, *ROWS[2:]]
    raws = read(splits(rows, answer="choices.index({'q0': 'Lima', 'q2': 'Oslo'}.get(id, 'Rome'))"))
    assert [isinstance(raw, DocError) for raw in raws] == [False, True, False]
    assert raws[1].found == "row 1 cannot be read: ValueError: 'Rome' is not in list"


def test_only_the_columns_that_are_named_are_decoded(splits, monkeypatch):
    chosen: list[list[str]] = []
    original = datasets.Dataset.select_columns

    def spy(self, names):
        chosen.append(list(names))
        return original(self, names)

    monkeypatch.setattr(datasets.Dataset, "select_columns", spy)
    rows = [{**{k: v for k, v in row.items() if k != "id"}, "long": "x" * 99} for row in ROWS]
    assert plain(read(splits(rows))) == EXPECTED
    assert chosen == [["answer", "choices", "question"]]


# Draws of rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [None, 10, 11])
def test_all_rows_are_read_where_they_are_few(most):
    counts = DocCounts("train")
    assert drawn_rows(10, most, 0, counts) == list(range(10))
    assert counts.not_drawn == 0


def test_rows_are_drawn_by_seed_in_order_and_the_rest_counted():
    counts = DocCounts("train")
    rows = drawn_rows(1000, 100, 0, counts)
    assert counts.not_drawn == 900
    assert rows == sorted(set(rows))
    assert len(rows) == 100
    assert drawn_rows(1000, 100, 0, counts) == rows != drawn_rows(1000, 100, 1, counts)
    # Half of them are expected below 500, standard deviation 4.7.
    assert 30 <= sum(row < 500 for row in rows) <= 70


def test_drawn_docs_carry_the_rows_they_stand_in(splits):
    rows = [{**ROWS[0], "question": f"{row}"} for row in range(50)]
    raws = read(splits(rows), SELECTION, most=7, seed=3)
    assert len(raws) == 7
    assert [raw.question for raw in raws] == [str(raw.row) for raw in raws]


def test_expressions_reach_columns_with_spaces_by_doc(splits):
    rows = [{"Question": "Which?", "Correct Answer": "yes", "Incorrect Answer": "no"}]
    source = splits(
        rows,
        question="{{ doc['Question'] }}",
        choices="[doc['Incorrect Answer'], doc['Correct Answer']]",
        answer="1",
    )
    (raw,) = read(source)
    assert (raw.question, raw.choices, raw.answer) == ("Which?", ["no", "yes"], 1)


def test_choices_may_be_a_filter_that_is_not_finished(splits):
    (raw,) = read(
        splits(
            [{"choices": [" a ", "b "]}],
            question="Which?",
            choices="choices | map('trim')",
            answer="0",
        )
    )
    assert raw.choices == ["a", "b"]


def test_a_split_may_be_several_files_or_a_pattern(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", ROWS)
    for files in (
        [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")],
        str(tmp_path / "?.jsonl"),
    ):
        source = DatasetSource(data_files={"train": files, "test": files})
        assert len(read(source)) == 2 * len(ROWS)


@pytest.mark.parametrize("name", ["question", "choices", "answer", "passage", "id"])
def test_expressions_must_be_quoted(name):
    with pytest.raises(TaskError, match=rf"{name} is \['a', 'b'\]\.\nExpected: Jinja in quotes"):
        DatasetSource(path="x", **{name: ["a", "b"]})


def test_data_that_cannot_be_loaded_are_named_with_a_remedy(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"question": ', encoding="utf-8")
    files = {"train": str(tmp_path / "broken.jsonl"), "test": str(tmp_path / "broken.jsonl")}
    message = (
        r"(?s)the data cannot be loaded: ValueError: .*broken\.jsonl: .*Remedy: .*docs/tasks\.md"
    )
    with pytest.raises(TaskError, match=message):
        read(DatasetSource(data_files=files))


def test_files_are_found_beside_the_yaml_unless_they_are_where_the_command_runs(
    tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "tasks").mkdir()
    for place in ("here/both.jsonl", "tasks/both.jsonl", "tasks/own.jsonl"):
        write(tmp_path / place, ROWS)
    monkeypatch.chdir(tmp_path / "here")
    given = {"train": "own.jsonl", "test": ["both.jsonl"], "dev": "none.jsonl"}
    assert located_files(given, tmp_path / "tasks") == {
        "train": [str(tmp_path / "tasks" / "own.jsonl")],
        "test": ["both.jsonl"],
        "dev": ["none.jsonl"],
    }
    with pytest.raises(
        TaskError, match=r"data_files is 'own\.jsonl'\.\nExpected: the file of each"
    ):
        located_files("own.jsonl", tmp_path)
