"""The table that commands over several runs end with."""

from __future__ import annotations

from neuronllm_eval.comparison.rows import ComparedRun
from neuronllm_eval.comparison.several_tasks import closing_table
from tests.fixtures.cli import call, copy_of, finished_run
from tests.fixtures.compared_runs import evaluated, sharing, waiting

RIGHT = {"unmasked": 14, "suppress_good": 10, "suppress_bad": 15, "degrade": 8,
         "suppress_good.random_0": 13, "suppress_good.random_1": 9}  # fmt: skip
SHARED = {"model": "m", "method": "ace", "neurons_of_a_kind": "4"}
LAW = evaluated("law", RIGHT, **SHARED)
ART = evaluated("a_rt", RIGHT | {"suppress_good": 13}, **SHARED)


def table(*results: ComparedRun) -> list[list[str]]:
    lines = closing_table(results).splitlines()
    rows = [line for line in lines if line.startswith("|") and "--" not in line]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_row_for_each_task_and_one_for_all():
    assert table(LAW, ART) == [
        ["task", "chance %", "unmasked %", "suppress_good", "degrade"],
        ["law", "50.0", "70.0", "-20.0 (-40.0 to -5.0), 1 of 2", "-30.0 (-50.0 to -10.0)"],
        ["a_rt", "50.0", "70.0", "-5.0 (-15.0 to +0.0), 0 of 2", "-30.0 (-50.0 to -10.0)"],
        # 5 of 40 docs lost; the controls lose 2, and 10.
        ["all", "50.0", "70.0", "-12.5 (-22.5 to -2.5), 1 of 2", "-30.0 (-45.0 to -17.5)"],
    ]
    assert "controls pooled in their order" in closing_table([LAW, ART])


def test_runs_that_differ_have_no_row_for_all():
    other = sharing(LAW, method="kn")
    found = table(LAW, other)
    assert found[0] == ["task", "method", "chance %", "unmasked %", "suppress_good", "degrade"]
    assert [row[:2] for row in found[1:]] == [["law", "ace"], ["law", "kn"]]
    assert "controls pooled in their order" not in closing_table([LAW, other])


def test_of_one_condition_alone():
    bad = [evaluated(name, {"unmasked": 4, "enhance_bad": 3}) for name in ("x", "y")]
    assert table(*bad)[0] == ["task", "chance %", "unmasked %", "enhance_bad"]


def test_runs_with_one_answer_are_marked():
    # Of the docs of `evaluated` the first option is gold: 18 of 20 correct have that answer.
    runs = [evaluated(name, {"unmasked": 10, "enhance": 18}) for name in ("x", "y")]
    assert table(*runs)[1][-1] == "+40.0 (+20.0 to +60.0), one answer"
    assert "90% or more of the docs have the same answer" in closing_table(runs)
    assert "one answer" not in closing_table([LAW, ART])


def test_there_is_none_of_one_run_or_of_nothing_in_common():
    history = waiting("history")
    assert closing_table([]) is closing_table([LAW]) is closing_table([LAW, history]) is None
    assert closing_table([LAW, evaluated("x", {"unmasked": 3, "enhance": 4})]) is None


def test_commands_over_several_runs_end_with_it(tmp_path):
    for name in ("one", "two"):
        copy_of(finished_run(), tmp_path / name)
    quick = ("--conditions", "suppress_good", "--n_random", 1, "--overwrite")
    for command in (("report", tmp_path, "--yes"), ("validate", tmp_path, *quick)):
        code, out, err = call(*command)
        assert code == 0, err
        last = [line for line in out.splitlines() if line.startswith("|")][-3:]
        assert [line.split("|")[1].strip() for line in last] == ["demo_topic"] * 2 + ["all"]
        assert call("report", tmp_path / "one")[1].count("unmasked %") == 0
