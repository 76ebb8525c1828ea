"""Parts on disk: damage is passed over and named, merging loses nothing and doubles nothing."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.runtime import checkpoint
from neuronllm_eval.runtime.checkpoint import BASE, Part, Tally, merge_parts, rank_part

WORK = "0123"


def tally(*units: int) -> Tally:
    """Unit u adds 2**u everywhere, so that a sum says which units are in it."""
    total = sum(2**unit for unit in units)
    return Tally({"sums": np.full((2, 3), total, np.int64)}, {"n": total})


def records(unit: int) -> list[dict[str, object]]:
    return [{"question": f"{unit}.{place}", "value": 0.1 + unit} for place in range(2)]


def save_part(folder: Path, name: str, *generations: tuple[int, ...]) -> Part:
    """A part that was saved after each of these groups of units."""
    part, done = Part(folder, name, WORK), []
    for units in generations:
        for unit in units:
            part.add(unit, records(unit))
            done.append(unit)
        part.save(tally(*done))
    return part


def assert_holds(part: Part, *units: int) -> None:
    assert sorted(part.done) == sorted(units)
    if units:
        np.testing.assert_array_equal(part.tally.arrays["sums"], tally(*units).arrays["sums"])
    assert part.tally.counts.get("n", 0) == sum(2**unit for unit in units)
    expected = [record for unit in sorted(units) for record in records(unit)]
    assert list(part.records()) == expected


def read(folder: Path, name: str = "rank-0") -> Part:
    return Part.read(folder, name, WORK)


def newest(folder: Path, name: str = "rank-0") -> Path:
    """The file of the generation written last: the odd ones are in 1, the even ones in 0."""
    return folder / f"{name}.{read(folder, name)._sequence % 2}.safetensors"


# One part ---------------------------------------------------------------------------------------


def test_what_was_saved_is_read(tmp_path):
    save_part(tmp_path, "rank-0", (4, 1), (3,), (0,))
    assert_holds(read(tmp_path), 0, 1, 3, 4)
    assert_holds(read(tmp_path, "rank-1"))


def test_what_was_not_saved_is_not_there(tmp_path):
    part = save_part(tmp_path, "rank-0", (4, 1))
    part.add(7, records(7))  # and then the machine stopped
    assert_holds(read(tmp_path), 1, 4)
    again = read(tmp_path)
    again.add(2, records(2))
    again.save(tally(1, 2, 4))
    assert_holds(read(tmp_path), 1, 2, 4)


def test_a_process_with_nothing_to_do(tmp_path):
    save_part(tmp_path, "rank-0", ())
    assert_holds(read(tmp_path))
    assert_holds(merge_parts(tmp_path, WORK))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other file"])
def test_a_damaged_generation_gives_way_to_the_one_before(tmp_path, caplog, damage):
    save_part(tmp_path, "rank-0", (4, 1), (3,), (0,))
    path = newest(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 4
    changed = {"truncated": content[:-7], "flipped": content, "empty": b"", "other file": b"x" * 99}
    path.write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING):
        assert_holds(read(tmp_path), 1, 3, 4)
    assert str(path) in caplog.text
    assert "the generation before is used" in caplog.text


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_state_goes_unnoticed(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("flipped")
    save_part(folder, "rank-0", (4, 1), (3,))
    path = newest(folder)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    found = read(folder)
    # Spaces that pad the header may change; nothing that is read may.
    if sorted(found.done) == [1, 3, 4]:
        assert_holds(found, 1, 3, 4)
    else:
        assert_holds(found, 1, 4)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_records_of_the_last_generation_that_are_damaged(tmp_path, caplog, how):
    save_part(tmp_path, "rank-0", (4, 1), (3,))
    path = tmp_path / "rank-0.jsonl"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content if how == "flipped" else content[:-9])
    with caplog.at_level(logging.WARNING):
        assert_holds(read(tmp_path), 1, 4)
    assert str(path) in caplog.text


def test_records_of_all_generations_that_are_damaged(tmp_path, caplog):
    save_part(tmp_path, "rank-0", (4, 1), (3,))
    (tmp_path / "rank-0.jsonl").unlink()
    with caplog.at_level(logging.WARNING):
        assert_holds(read(tmp_path))
    assert "its questions are recomputed" in caplog.text
    assert_holds(merge_parts(tmp_path, WORK))
    assert list(tmp_path.iterdir()) == []  # nothing is left that could be taken for newer


def test_a_part_of_other_work(tmp_path, caplog):
    save_part(tmp_path, "rank-0", (4, 1))
    with caplog.at_level(logging.WARNING):
        assert Part.read(tmp_path, "rank-0", "other").done == []
    assert "is of other work" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch, number):
    part = save_part(tmp_path, "rank-0", (4, 1))
    part.add(3, records(3))

    def full(path: Path, content: bytes) -> None:
        path.with_name(".half").write_bytes(content[:10])
        raise OSError(number, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_durably", full)
        with pytest.raises(ArtifactError, match=r"(?s)rank-0.*cannot be written: no room.*resumes"):
            part.save(tally(1, 3, 4))
    assert_holds(read(tmp_path), 1, 4)


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_durably(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


# Merging ----------------------------------------------------------------------------------------


def test_parts_become_one(tmp_path):
    save_part(tmp_path, rank_part(0), (0, 2), (4,))
    save_part(tmp_path, rank_part(1), (1,), (3,))
    save_part(tmp_path, rank_part(10), ())
    assert_holds(merge_parts(tmp_path, WORK), 0, 1, 2, 3, 4)
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {BASE}
    save_part(tmp_path, rank_part(0), (5,))
    assert_holds(merge_parts(tmp_path, WORK), 0, 1, 2, 3, 4, 5)
    assert_holds(merge_parts(tmp_path, WORK), 0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("stops", ["before the base is written", "before the part is removed"])
def test_a_merge_that_is_cut_off_is_done_again(tmp_path, monkeypatch, stops):
    save_part(tmp_path, rank_part(0), (0, 2))
    save_part(tmp_path, rank_part(1), (1,))

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        place = (checkpoint, "write_durably") if stops.endswith("written") else (Part, "remove")
        patch.setattr(*place, cut)
        with pytest.raises(KeyboardInterrupt):
            merge_parts(tmp_path, WORK)
    assert_holds(merge_parts(tmp_path, WORK), 0, 1, 2)
    assert_holds(read(tmp_path, BASE), 0, 1, 2)


def test_parts_that_share_some_units_are_an_error(tmp_path):
    save_part(tmp_path, rank_part(0), (0, 2))
    save_part(tmp_path, rank_part(1), (1, 2))
    with pytest.raises(
        ArtifactError, match=r"(?s)base and rank-1 both hold units \[2\].*overwrite"
    ):
        merge_parts(tmp_path, WORK)


def test_a_damaged_base_loses_what_was_merged_last_and_nothing_else(tmp_path, caplog):
    save_part(tmp_path, rank_part(0), (0, 2))
    merge_parts(tmp_path, WORK)
    save_part(tmp_path, rank_part(0), (1,))
    merge_parts(tmp_path, WORK)
    path = newest(tmp_path, BASE)
    path.write_bytes(path.read_bytes()[:-1])
    assert_holds(merge_parts(tmp_path, WORK), 0, 2)
    assert str(path) in caplog.text
    save_part(tmp_path, rank_part(0), (1, 3))  # computed again
    assert_holds(merge_parts(tmp_path, WORK), 0, 1, 2, 3)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=4))
def test_sums_do_not_depend_on_who_did_what(tmp_path_factory, shares):
    """Unit numbers count through; what each launch's ranks did is drawn."""
    folder = tmp_path_factory.mktemp("shares")
    number, all_units = 0, []
    for share in shares:  # one launch
        ranks: dict[int, list[int]] = {}
        for rank in share:
            ranks.setdefault(rank, []).append(number)
            all_units.append(number)
            number += 1
        for rank, units in ranks.items():
            save_part(folder, rank_part(rank), tuple(units))
        merge_parts(folder, WORK)
    assert_holds(merge_parts(folder, WORK), *all_units)
