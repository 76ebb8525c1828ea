"""Units follow from the questions and the batch size; other work is told by settings' names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runtime.resumable_work import (
    WORK_FILE,
    Work,
    end_of_batch,
    prompts_digest,
    recorded_work,
    units_of,
)


def questions(*sizes: int) -> list[Question]:
    """Questions of so many prompts each."""
    return [
        Question(f"q{index}", tuple(Prompt(index, (7, place), ((1,), (2,)), 0)
                                    for place in range(size)))
        for index, size in enumerate(sizes)
    ]  # fmt: skip


def test_units_by_hand():
    # Six prompts go together: 3 + 3, then 3 + 1 (4 more would be 8), then 4.
    assert units_of(questions(3, 3, 3, 1, 4), 6) == (range(0, 2), range(2, 4), range(4, 5))
    assert units_of(questions(4), 1) == (range(0, 1),)
    assert units_of([], 6) == ()


@given(st.lists(st.integers(1, 6), max_size=20), st.integers(1, 12))
def test_every_question_is_in_one_unit(sizes, batch_size):
    units = units_of(questions(*sizes), batch_size)
    assert [place for unit in units for place in unit] == list(range(len(sizes)))
    assert all(len(unit) == 1 or sum(sizes[i] for i in unit) <= batch_size for unit in units)


def test_a_smaller_batch_within_a_unit_stops_at_its_end():
    asked = questions(2, 2, 2, 2)
    assert end_of_batch(asked, 0, 3, 99) == 3
    assert end_of_batch(asked, 1, 3, 2) == 2


def test_the_digest_sees_every_token():
    asked = questions(2, 1)
    changed = [
        Question("q0", asked[0].prompts[:1]),
        Question("other", asked[0].prompts),
        Question("q0", (asked[0].prompts[0], Prompt(0, (7, 1), ((1,), (3,)), 0))),
        Question("q0", (asked[0].prompts[0], Prompt(0, (7, 1), ((1,), (2,)), 1))),
        Question("q0", (asked[0].prompts[0], Prompt(0, (8, 1), ((1,), (2,)), 0))),
    ]
    digests = {prompts_digest([first, asked[1]]) for first in (asked[0], *changed)}
    assert len(digests) == 6
    # As before prompts could have lengths.
    before = Question("q", (Prompt(0, (1, 2, 3), ((5,), (6,)), 1, 1),))
    assert prompts_digest([before]) == "b5e356a29a6078ff"
    divided = {
        prompts_digest([Question("q", (replace(before.prompts[0], lengths=lengths),))])
        for lengths in ((), (2.0, 3.0), (3.0, 2.0))
    }
    assert len(divided) == 3
    assert prompts_digest(asked) == prompts_digest(questions(2, 1))


# Other work -------------------------------------------------------------------------------------


def write(folder: Path, work: Work) -> Path:
    path = folder / WORK_FILE
    path.write_text(work.to_json(), encoding="utf-8")
    return path


def work(batch_size: int = 4, **identity: object) -> Work:
    identity = {"top_z": 0.1, "method": "ace", "shape": (2, 3), **identity}
    return Work.plan(identity, questions(2, 2, 2), batch_size)


def test_the_same_work_is_gone_on_with(tmp_path):
    write(tmp_path, work())
    work().require_same(recorded_work(tmp_path), tmp_path)  # a tuple is a list once it is read back
    assert recorded_work(tmp_path).batch_size == 4
    assert recorded_work(tmp_path / "nowhere") is None


def test_other_settings_are_named(tmp_path):
    write(tmp_path, work())
    with pytest.raises(UsageError) as refusal:
        work(top_z=0.2, method="act", seed=1).require_same(recorded_work(tmp_path), tmp_path)
    text = str(refusal.value)
    assert "method is 'act', there 'ace'" in text
    assert "top_z is 0.2, there 0.1" in text
    assert "seed is 1, there None" in text
    assert "shape" not in text
    assert "--overwrite" in text


def test_another_batch_size_and_other_questions_are_named(tmp_path):
    write(tmp_path, work())
    with pytest.raises(UsageError, match="batch_size is 2, there 4"):
        work(2).require_same(recorded_work(tmp_path), tmp_path)
    with pytest.raises(UsageError, match=r"prompts is '\w+', there '\w+'"):
        Work.plan(work().identity, questions(2, 2), 4).require_same(
            recorded_work(tmp_path), tmp_path
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("identity"),
        lambda values: values.update(identity=[]),
        lambda values: values.update(batch_size="4"),
        lambda values: values.update(schema_version=99),
        lambda values: values.update(more=1),
    ],
)
def test_a_damaged_work_file(tmp_path, change):
    path = write(tmp_path, work())
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=r"(?s)cannot be resumed: .*work\.json.*--overwrite"):
        work().require_same(recorded_work(tmp_path), tmp_path)
    path.write_bytes(b"\xff{")
    with pytest.raises(ArtifactError, match=r"(?s)cannot be resumed.*--overwrite"):
        recorded_work(tmp_path)
