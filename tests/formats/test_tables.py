"""The formats of comparisons: what is shown, that nothing in it is markup, and figures in full."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from neuronllm_eval.cli.compare import SUFFIXES
from neuronllm_eval.comparison.compare import Comparison, render
from neuronllm_eval.comparison.neuron_overlap import MOST_PAIRS, overlap_sections, overlaps
from neuronllm_eval.comparison.ranking import COLUMNS, RankedRows, in_order, ranked
from neuronllm_eval.comparison.settings import CompareSettings
from neuronllm_eval.comparison.tables import legend, ranked_sections, unfinished
from neuronllm_eval.comparison.words import HEADS
from neuronllm_eval.formats.settings_model import about_flag
from neuronllm_eval.formats.tables import PAGES, Section, as_csv, as_table, tex
from neuronllm_eval.interventions.conditions import Edited
from tests.fixtures.compared_runs import row, run_of

NO_CONTROLS = {"controls": None, "n_beyond": 0}
HOSTILE = 'm|o&d_e<l>%$#{}~^\\"\x1b[31m\n**x**'


def page(entries, group_by="task", kind="table"):
    return PAGES[kind](shown(entries, group_by))


def table_of(entries, group_by="task", place=1):
    return shown(entries, group_by)[place]


def shown(entries, group_by="task", columns=(), **how):
    return ranked_sections(ordered(entries, group_by), group_by, columns, **how)


def ordered(entries, group_by="task"):
    found = ranked(entries)
    return RankedRows(in_order(found.frame, group_by).reset_index(drop=True), found.sets)


def test_every_format_has_a_maker_and_a_suffix():
    formats = about_flag(CompareSettings.model_fields["format"])["choices"]
    assert set(formats) == {*PAGES, "csv", "json"} == set(SUFFIXES.values())


# What is shown ------------------------------------------------------------------------------------


def test_figures_are_rounded_and_what_is_alike_is_said_once():
    entries = [
        row("unmasked", method="ace"),
        row("unmasked", method="kn"),
        row(method="ace", delta=-12.34),
        row(method="kn", p_holm=0.0001, **NO_CONTROLS),
    ]
    first, table, notes = shown(entries)
    assert first.notes == ("The same in all rows: model model, seed 0, K 41, questions 60.",)
    assert table.title == "demo"
    # The unmasked model is one row, since no method has a part in it.
    assert table.table.to_dict("list") == {
        "rank": ["", "1 of 2", "2 of 2"],
        "method": ["", "ace", "kn"],
        "condition": ["unmasked", "suppress_good", "suppress_good"],
        "factor": ["", "0", "0"],
        "accuracy %": ["80.0", "67.7", "70.0"],
        "delta (points)": ["", "-12.3", "-10.0"],
        "95% interval": ["", "-17.3 to -7.3", "-15.0 to -5.0"],
        "p (Holm)": ["", "0.0625", "<0.001"],
        "controls outdone": ["", "19 of 20", ""],
        "consistent %": ["33.3"] * 3,
        "consistent change": ["", "-20.0", "-20.0"],
        "position bias %": ["12.0"] * 3,
        "position bias change": ["", "+1.0", "+1.0"],
        "majority %": ["75.0"] * 3,
    }  # fmt: skip
    assert "Rank: within a task" in notes.notes[0]


def test_a_table_for_each_group():
    entries = [row(task=t, method=m) for t in ("a", "b") for m in ("ace", "kn")]
    for group_by, titles in (("task", ["a", "b"]), ("method", ["ace", "kn"]), ("model", ["model"])):
        titled = [s for s in shown(entries, group_by) if s.title]
        assert [each.title for each in titled] == titles
        assert group_by not in titled[0].table.columns


def test_sets_are_marked_and_told_apart_in_words():
    entries = [row(), row(method="kn"), row(method="tn", run="r2", terms={"top_k": 20})]
    section = table_of(entries)
    assert list(section.table["set"]) == ["a", "a", "b"]
    (words,) = legend(ranked(entries).sets)
    assert words == (
        "demo has results that cannot be compared with each other, by set. a: 1 run, 60 questions "
        "of the test split, K 41; b: 1 run, K 20 instead of 41."
    )
    assert words in shown(entries)[-1].notes
    assert "set" not in table_of(entries[:2]).table.columns
    assert legend(ranked(entries[:2]).sets) == []


def test_methods_say_in_which_settings_they_differ():
    entries = [
        row(settings='{"n_steps": 5, "top_z": 0.1}', run="x/r1"),
        row(settings='{"n_steps": 3, "top_z": 0.1}', run="x/r2"),
        row(method="kn", settings='{"n_steps": 9}', run="x/r3"),
    ]
    found = table_of(entries).table
    assert sorted(found["method"]) == ["ace n_steps=3", "ace n_steps=5", "kn"]
    assert "run" not in found.columns


def test_runs_that_nothing_else_tells_apart_have_their_directories():
    entries = [row(run="/x/y/r1"), row(run="/x/y/sub/r2")]
    *_, table, notes = shown(entries)
    assert sorted(table.table["run"]) == ["r1", "sub/r2"]
    assert "Directories are below /x/y." in notes.notes
    seeds = [row(run="/x/y/r1"), row(run="/x/y/r2", seed=1)]
    assert "run" not in table_of(seeds).table.columns
    assert list(table_of(seeds).table["seed"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        ([("org/a", "h1", "float32"), ("x/a", "h1", "float32")], {"h1": "a"}),
        ([("o/a", "h1", "f32"), ("o/b", "h2", "f32")], {"h1": "a", "h2": "b"}),
        ([("o/a", "h1", "f32"), ("p/a", "h2", "f32")], {"h1": "o/a", "h2": "p/a"}),
        ([("o/a", "h1", "f32"), ("o/a", "h2", "bf16")], {"h1": "a (f32)", "h2": "a (bf16)"}),
        ([("o/a", "h1", "f32"), ("o/a", "h2", "f32")],
         {"h1": "o/a (f32, h1)", "h2": "o/a (f32, h2)"}),
    ],
)  # fmt: skip
def test_models_are_told_apart_by_their_weights(models, labels):
    entries = [row(model=m, model_hash=h, dtype=d, run=f"{m}{h}") for m, h, d in models]
    found = shown(entries, "model")
    assert {each.title for each in found if each.title} == set(labels.values())


def test_what_no_row_has_is_no_column():
    table = table_of([row(metrics={}), row("enhance", metrics={})]).table
    assert not [head for head in table.columns if "bias" in head or "consistent" in head]


def test_overlaps_show_the_pairs_that_share_most():
    runs = [
        run_of("r1", good=(0, 1)),
        run_of("r2", good=(0, 1), method="kn"),
        run_of("r3", good=(4,), method="tn"),
        run_of("r4", model_hash="h2", model="alone"),
    ]
    (found,) = overlap_sections(overlaps(runs)[0], runs)
    assert found.title == "Neurons shared by runs of model"
    first = found.table.iloc[0].to_dict()
    assert (first["run"], first["other run"]) == ("demo ace", "demo kn")
    assert first["good"] == "2 of 2, 1.00 (0.18)"
    many = [run_of(f"x/{n}", seed=n) for n in range(10)]
    (found,) = overlap_sections(overlaps(many)[0], many)
    assert len(found.table) == MOST_PAIRS
    assert found.notes[-1].startswith("15 more pairs")
    assert found.table["run"].iloc[0].endswith("seed 0")


def test_unfinished_runs_are_named():
    runs = [run_of("a/r1", missing="validate"), run_of("a/r2", missing="report"), run_of("r3")]
    one, other = unfinished(runs)
    assert one.title == "Not validated yet"
    assert list(one.table["next command"]) == ["neuronllm-eval validate a/r1"]
    assert list(other.table["next command"]) == ["neuronllm-eval report a/r2"]
    assert unfinished(runs[2:]) == []


# Nothing is markup --------------------------------------------------------------------------------


def hostile(kind: str) -> str:
    names = {"model": HOSTILE, "task": HOSTILE, "method": HOSTILE, "run": f"/x/{HOSTILE}"}
    return page([row(**names), row(**{**names, "task": "b", "model_hash": "h2"})], "task", kind)


def test_text_has_no_controls_and_one_line_a_row():
    found = hostile("table")
    assert "\x1b" not in found
    assert 'm|o&d_e<l>%$#{}~^\\" [31m **x**' in found
    rows = [line for line in as_table([table_of([row(), row("enhance")])]).splitlines() if line]
    assert len({line.index("suppress_good") for line in rows if "suppress_good" in line}) == 1
    assert len(rows) == 1 + 3 + 1 + 2  # title, head of three lines, rule, two rows


def test_markdown_is_escaped():
    found = hostile("markdown")
    assert "\x1b" not in found
    rows = [line for line in found.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {rows[0].count("|")}
    assert "\\*\\*x\\*\\*" in found
    assert "\\<l\\>" in found


def test_latex_is_escaped():
    found = hostile("latex")
    assert found.count("\\toprule") == found.count("\\bottomrule") == 2
    written = (
        "m\\textbar{}o\\&d\\_e\\textless{}l\\textgreater{}\\%\\$\\#\\{\\}\\textasciitilde{}"
        "\\textasciicircum{}\\textbackslash{}\\textquotedbl{} [31m **x**"
    )
    assert tex(HOSTILE) == written
    assert f"\\caption{{{written}}}" in found
    rows = [line for line in found.splitlines() if line.endswith("\\\\")]
    assert len({line.replace("\\&", "").count("&") for line in rows}) == 1
    assert "\\textless{}0.001" in page([row(p_holm=1e-9)], kind="latex")


def test_latex_has_labels_and_real_minus_signs():
    entries = [row(task=task, method="gpt-2") for task in ("a_b", "A b")]
    found = page([*entries, row("enhance", task="a_b", delta=0.5, method="gpt-2")], kind="latex")
    assert found.splitlines()[0] == "% \\usepackage{booktabs}, \\usepackage[T1]{fontenc}"
    assert re.findall(r"\\label{(.*?)}", found) == ["tab:a-b", "tab:a-b-2"]
    rows = [line for line in found.splitlines() if line.endswith(r"\\")]
    assert "$-$10.0 & $-$15.0 to $-$5.0" in rows[1]
    assert "+0.5 & $-$4.5 to +5.5" in "".join(rows)
    words = [row(method=name) for name in ("gpt-2", "x -2")]
    assert {"gpt-2", "x -2"} <= set(re.findall(r"(gpt-2|x -2) &", page(words, kind="latex")))


def test_figures_stand_at_the_right_in_html():
    found = page([row(method="ace"), row(method="kn", delta=1.0)], kind="html")
    assert '<th class="figure">delta (points)</th>' in found
    assert '<td class="figure">-10.0</td>' in found
    assert "<th>method</th>" in found
    assert "<td>suppress_good</td>" in found
    assert ".figure { text-align: right; }" in found


# Which columns ------------------------------------------------------------------------------------


def test_columns_that_are_asked_for_are_shown_in_their_order_whatever_they_hold():
    entries = [row(method="ace"), row(method="kn", delta=-3.0)]
    first, table, *_ = shown(entries, "task", ("delta", "method", "seed", "majority", "task"))
    assert table.table.to_dict("list") == {
        "delta (points)": ["-10.0", "-3.0"],
        "method": ["ace", "kn"],
        "seed": ["0", "0"],
        "majority %": ["75.0", "75.0"],
        "task": ["demo", "demo"],
    }
    assert "seed" not in first.notes[0]  # it is in every row
    assert "K 41" in first.notes[0]


def test_a_page_of_print_has_few_columns():
    def heads(entries):
        return list(shown(entries, is_print=True)[1].table.columns)

    few = ["condition", "accuracy %", "delta (points)", "95% interval", "controls outdone"]
    assert heads([row(method=name) for name in ("ace", "kn")]) == ["method", *few]
    points = [row(name=f"suppress_good.k41.x{scale}", scale=scale) for scale in (0.25, 0.5)]
    assert heads(points) == [few[0], "factor", *few[1:]]
    assert heads([row(seed=seed, run=str(seed)) for seed in (0, 1)]) == ["seed", *few]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_one_page_of_closed_tags_without_script():
    parser = _Tags()
    parser.feed(hostile("html"))
    parser.close()
    assert parser.open == []
    assert parser.seen == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div",
                           "table", "thead", "tbody", "tr", "th", "td"}  # fmt: skip
    assert 'm|o&d_e<l>%$#{}~^\\" [31m **x**' in parser.text
    long = "x" * 90  # pandas cuts cells at 50 unless told otherwise
    assert f"<td>{long}</td>" in page([row(method=long), row()], kind="html")


# The docs -----------------------------------------------------------------------------------------


def _table(text: str, head: str) -> list[list[str]]:
    """The cells of a table's rows."""
    rows = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_docs_name_every_column_and_flag():
    text = Path("docs/comparison.md").read_text(encoding="utf-8")
    columns = _table(text, "| column | in tables |")
    named = [name for row in columns for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(COLUMNS)
    heads = {head for row in columns for head in HEADS.values() if head in row[1]}
    entries = [
        row(task=t, model=m, model_hash=m, method=k, seed=s, top_k=k_, run=r)
        for t, m, k, s, k_, r in (
            ("a", "m", "ace", 0, 1, "r/1"),
            ("b", "n", "kn", 1, 2, "r/2"),
        )
        for _ in range(2)
    ]
    entries[0] = row(task="a", model="m", model_hash="m", terms={"top_k": 1}, run="r/3")
    entries[1] = row(task="a", model="m", model_hash="m", edited=(Edited(1, 0, None, "good only"),))
    heads_shown = {head for group in ("task", "model") for part in shown(entries, group)
                   if part.table is not None for head in part.table.columns}  # fmt: skip
    assert heads_shown <= heads == set(HEADS.values())
    start = re.search(r"in\s+the\s+other\s+formats\s+they\s+are", text).end()
    names = text[start : text.index("| column | in tables |")]
    assert re.findall(r"`(\w+)`", names) == list(HEADS)
    flags = {f"--{name}" for name in CompareSettings.model_fields} - {"--run_dir"}
    told = {flag for row in _table(text, "| flag | meaning |") for flag in
            re.findall(r"`(--\w+)`", row[0])}  # fmt: skip
    assert told == flags


# Figures in full ----------------------------------------------------------------------------------


ROWS = [
    row("unmasked", task='a,b\n"c"'),
    row(delta=-1 / 3, p_holm=1e-17, method=HOSTILE, metrics={}),
    row("enhance", **NO_CONTROLS),
]


def test_csv_reads_back_as_the_rows():
    frame = ordered(ROWS).frame
    text = as_csv(frame)
    found = pd.read_csv(io.StringIO(text, newline=""), dtype=COLUMNS)
    # How exactly pandas reads a float depends on its version; the file itself is exact.
    pd.testing.assert_frame_equal(found, frame, rtol=1e-14)
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    for name in (name for name, kind in COLUMNS.items() if kind == "float64"):
        written = [float(row[name]) if row[name] else None for row in rows]
        assert written == [None if pd.isna(value) else value for value in frame[name]]


def test_texts_are_no_formulas_of_a_spreadsheet():
    found = ordered([row(method="=1+1", run="-x", delta=-2.0)]).frame
    (line,) = csv.DictReader(io.StringIO(as_csv(found)))
    assert (line["method"], line["run"], line["delta"]) == ("'=1+1", "'-x", "-2.0")


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *((f"{mark}cmd|' /C calc'!A0", f"'{mark}cmd|' /C calc'!A0") for mark in "=+-@\uff1d\uff0b"),
        (" =1+1", "' =1+1"),
        ("\t=1", "'\t'=1"),
        ("\r=1", "'\n'=1"),
        ("x;=1+1", "x;'=1+1"),  # where spreadsheets have semicolons between cells
        ("x\n@SUM(1)", "x\n'@SUM(1)"),
        ("-1.5e-3", "-1.5e-3"),
        ("+2", "+2"),
        ("-inf", "'-inf"),
        ("a-b=c", "a-b=c"),
        ("", ""),
    ],
)
def test_no_cell_and_no_head_is_a_formula(cell, written):
    frame = pd.DataFrame({"n": [-2.5, 3.0], cell: [cell, None]})
    rows = list(csv.reader(io.StringIO(as_csv(frame), newline="")))
    assert rows == [["n", written], ["-2.5", written], ["3.0", ""]]


@pytest.mark.parametrize("kind", PAGES)
def test_no_format_has_a_control_character(kind):
    text = "\x1b]0;x\x07\u202e\x9b\r\nevil"
    section = Section(text, pd.DataFrame({text: [text], "b": ["1"]}), (text,))
    lines = PAGES[kind]([section]).split("\n")
    assert all(line.isprintable() for line in lines)
    assert sum("evil" in line for line in lines) >= 3


def test_long_white_space_is_no_work():
    frame = pd.DataFrame({"a": ["\n" * 100_000, " " * 100_000, "; " * 50_000]})
    assert as_csv(frame).count("'") == 100_000  # quadratic work would take minutes


def test_no_cell_is_an_argument_of_latex():
    section = Section("", pd.DataFrame({"[9cm] a": ["[9cm] b", "* c"], "b": ["1", "2"]}))
    written = PAGES["latex"]([section])
    assert "\n{[}9cm] b & 1 \\\\\n{*} c & 2 \\\\" in written
    assert "\n[" not in written


def test_json_is_strict_and_has_the_same_values():
    runs = (run_of("r1", *ROWS), run_of("r2", good=()), run_of("r3", missing="validate"))
    text = render(
        Comparison(runs, overlaps(runs)[0]),
        "json",
        CompareSettings(run_dir=(Path("runs"),), rank=True),
    )

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(text, parse_constant=refuse)
    assert set(found) == {"rows", "overlaps", "sets", "other_tasks", "unfinished", "damaged"}
    assert [set(each) for each in found["rows"]] == [set(COLUMNS)] * 3
    frame = ordered(ROWS).frame
    for each, record in zip(found["rows"], frame.to_dict("records"), strict=True):
        assert each == {k: None if pd.isna(v) else v for k, v in record.items()}
    third = next(each for each in found["rows"] if each["p_holm"] == 1e-17)
    assert third["delta"] == -1 / 3
    assert type(third["top_k"]) is int
    assert third["consistent"] is None
    assert found["sets"][0]["terms"]["split"] == "test"
    assert found["overlaps"][0]["jaccard"] == 0.0
    assert found["unfinished"][0]["run"] == "r3"


def test_fewer_neurons_than_asked_for_are_shown():
    entries = [row(method="ace"), row(method="qrnca", n_good=(24,), n_bad=(0,))]
    _, section, _ = shown(entries)
    found = dict(zip(section.table["method"], section.table["good/bad"], strict=True))
    assert found == {"ace": "", "qrnca": "24/0"}
