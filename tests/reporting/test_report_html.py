"""report.html, without a browser: what stands in it, and what never does."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from neuronllm_eval.explain.token_effects import NeuronTokens, TokenEffect
from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.interventions.conditions import CONDITIONS
from neuronllm_eval.reporting import charts
from neuronllm_eval.reporting.charts import MOST_PANELS
from neuronllm_eval.reporting.condition_tables import conditions_table
from neuronllm_eval.reporting.detail_tables import EXPLAIN, neurons_table
from neuronllm_eval.reporting.sections import report_sections
from neuronllm_eval.reporting.write_reports import render_markdown, render_page, spans
from tests.fixtures.pages import HOSTILE, POINTS, a_run

WITHOUT_TOKENS = EXPLAIN.split("`")[2].strip()  # as a page has it, after the code
VOID = {"meta", "link", "img", "br", "input", "hr"}
LOADING = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")


class Page(HTMLParser):
    """A page taken apart; tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text.strip() for name, text in self.texts if name == tag]


def page(**changes) -> Page:
    return Page(render_page(a_run(**changes)))


SECTIONS = [
    "Effect of each condition",
    "Questions gained and lost",
    "Predicted options",
    "Accuracy by group",
    "Selected neurons and their stability",
    "Provenance and commands",
]


def test_the_sections_of_a_judged_run():
    found = page()
    assert found.said("h2") == SECTIONS
    anchors = {attributes["id"] for attributes in found.all("section")}
    assert {attributes["href"] for attributes in found.all("a")} == {f"#{each}" for each in anchors}
    assert found.said("h1") == ["some text"]
    assert found.said("pre")[0].startswith("neuronllm-eval identify ")


def test_before_validation():
    found = page(names=())
    assert found.said("h2") == SECTIONS[-2:]
    assert "Selected 12 good and 12 bad neurons of 256." in found.said("p")
    assert found.said("pre") == ["identify it"]


def test_a_sweep_has_panels_by_factor_and_by_number():
    found = page(names=CONDITIONS[1:] + POINTS)
    assert found.said("h2")[1] == "Dose-response"
    titles = [f"{kind}, {how}" for kind in ("Good neurons", "Bad neurons")
              for how in ("by factor", "by number of neurons")]  # fmt: skip
    assert [text for text in found.said("p") if text in titles] == titles
    assert "enhance_good ×1.5" in found.said("p")
    assert "8 neurons" in found.said("p")


def test_points_alone_stand_in_the_table_of_conditions_and_do_not_flood_the_page():
    report = a_run(names=POINTS)
    table = conditions_table(report.summaries)
    assert [row[0] for row in table.rows] == ["chance", "unmasked", *POINTS]
    panels = [
        label
        for each in page(names=POINTS).all("svg")
        if (label := each.get("aria-label") or "").startswith("Predicted options, ")
    ]
    assert len(panels) == MOST_PANELS < len(POINTS)
    assert panels[0].startswith("Predicted options, unmasked,")
    assert panels[-1].startswith(f"Predicted options, {POINTS[-1]},")


def test_one_condition_of_a_model_with_one_layer():
    found = page(n_layers=1, names=("degrade",))
    assert found.said("h2") == SECTIONS
    assert found.all("svg")[1]["aria-label"].startswith("Accuracy deltas in points: degrade ")


def test_eighty_layers():
    found = page(n_layers=80, each=400)
    (spread,) = [
        label
        for attributes in found.all("svg")
        if (label := attributes.get("aria-label") or "").startswith("Neurons by layer")
    ]
    assert spread.count("layer ") == 80
    # Labels below the bars that do not run into each other.
    ticks = {int(text) for text in found.said("text") if text.isdigit()}
    assert {0, 5, 75} <= ticks
    assert 77 not in ticks


def test_every_figure_has_a_text_for_those_who_do_not_see_it():
    found = page(names=CONDITIONS[1:] + POINTS, explained=True)
    figures = [each for each in found.all("svg") if each.get("aria-hidden") != "true"]
    assert len(figures) > 30
    assert all(each["role"] == "img" and len(each["aria-label"]) > 20 for each in figures)
    assert all(each["aria-label"] for each in found.all("div") if each.get("role") == "region")
    assert {each.get("scope") for each in found.all("th")} == {"row", "col"}


def test_tokens_stand_in_it_once_the_run_was_explained():
    without, explained = page(), page(explained=True)
    assert any(WITHOUT_TOKENS in text for text in without.said("p"))
    assert "promotes" not in without.said("th")
    heads = {"mostly promotes", "mostly demotes", "positive %", "about"}
    assert heads <= set(explained.said("th"))
    assert {'"some text", " b"', '" c"', "25", "letter"} <= set(explained.said("td"))
    assert not any(WITHOUT_TOKENS in text for text in explained.said("p"))


def test_tokens_of_identification_stand_in_it_before_that():
    found = page(listed=True)
    assert {"promotes", "demotes"} <= set(found.said("th"))
    assert "positive %" not in found.said("th")
    assert {'"some text", " b"', '" c"'} <= set(found.said("td"))
    assert not any(WITHOUT_TOKENS in text for text in found.said("p"))


def test_neurons_that_explain_did_not_look_at_say_so():
    report = a_run(explained=True, each=2)
    first, *_, last = report.tokens
    own = NeuronTokens(*last, (TokenEffect(4, " own", 1.0),), ())
    few = {first: report.tokens[first], last: own}
    rows = neurons_table(dataclasses.replace(report, tokens=few)).rows
    assert [row[-4:] for row in rows] == [
        ('" c"', '"some text", " b"', "25", "letter"),  # a quarter is positive: reversed
        ("", "", "", "not explained"),
        ("", "", "", "not explained"),
        ('" own"', "", "", "not explained"),
    ]


def scatter(found: Page) -> tuple[set[str], str]:
    """The neurons that the halves' figure draws, and what the page says of it."""
    names = {text for text in found.said("title") if re.fullmatch(r"\d+:\d+", text)}
    (caption,) = [text for text in found.said("figcaption") if "either half" in text]
    return names, caption


def test_every_selected_neuron_is_drawn():
    report = a_run(n_layers=30, each=461)
    names, caption = scatter(Page(render_page(report)))
    selected = report.neurons.good + report.neurons.bad
    assert names == {f"{neuron.layer}:{neuron.index}" for neuron in selected}
    assert "Drawn" not in caption


def test_of_very_many_neurons_the_strongest_are_drawn(monkeypatch):
    monkeypatch.setattr(charts, "MOST_MARKS", 3)
    report = a_run(each=5)
    names, caption = scatter(Page(render_page(report)))
    strongest = report.neurons.good[:3] + report.neurons.bad[:3]
    assert names == {f"{neuron.layer}:{neuron.index}" for neuron in strongest}
    assert "Drawn: the 3 strongest of 5 good ones and the 3 strongest of 5 bad ones." in caption


def test_of_very_many_groups_those_that_changed_most_are_drawn(monkeypatch):
    monkeypatch.setattr(charts, "MOST_GROUPS", 2)
    changes = [
        charts.GroupChange(name, 50, after)
        for name, after in (("same", 50), ("lost", 20), ("lost most", 10), ("gained", 90))
    ]
    assert charts.groups(changes, "degrade").alt.endswith(
        "degrade: lost most 50 to 10; gained 50 to 90."
    )


def test_code_is_set_as_code():
    found = page()
    assert "neuronllm-eval explain" in found.said("code")
    assert not any("`" in text for _, text in found.texts)


def test_words_in_backticks_are_code_and_nothing_else_is_markup():
    assert spans("a `b <i>` c & ``") == "a <code>b &lt;i&gt;</code> c &amp; ``"


def test_settings_are_shown_as_pairs():
    report = a_run()
    asked = '{"n_proxies": 3, "letter_style": "A."}'
    known = dataclasses.replace(report.scores.provenance, asked=asked, method_args='{"top": 4}')
    scores = dataclasses.replace(report.scores, provenance=known)
    found = Page(render_page(dataclasses.replace(report, scores=scores)))
    assert "n_proxies=3, letter_style=A." in found.said("td")
    assert "some text, top=4" in found.said("td")
    assert not any(text.startswith("{") for text in found.said("td"))


def test_tables_that_are_laid_out_anew_say_what_their_parts_are():
    roles = {each["role"] for tag in ("table", "tr", "th", "td") for each in page().all(tag)
             if "role" in each}  # fmt: skip
    assert roles == {"table", "row", "columnheader", "rowheader", "cell"}


def test_nothing_is_loaded_and_nothing_runs():
    found = page(text=HOSTILE, explained=True)
    for tag, attributes in found.tags:
        for name in LOADING:
            if name in attributes:
                assert attributes[name].startswith("#") or attributes[name] == "data:,"
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert not {"script", "img", "iframe", "object", "embed", "form"} & {
        tag for tag, _ in found.tags
    }
    assert not re.search(r"url\((?!#hatch\))|@import", " ".join(found.said("style")))
    (policy,) = [each["content"] for each in found.all("meta")
                 if each.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_texts_from_elsewhere_are_shown_as_they_are():
    found = page(text=HOSTILE, explained=True)
    seen = " ".join(HOSTILE.replace("\x1b", " ").replace("\u202e", " ").split())
    assert found.said("h1") == [seen]
    shown = "".join(text for _, text in found.texts)
    assert shown.count("<script>alert(1)</script>") > 20
    assert "49" not in found.said("h1")[0]
    for text in shown.replace("\n", ""):
        assert text.isprintable()
    labels = " ".join(each.get("aria-label") or "" for each in found.all("svg"))
    assert labels.isprintable()


def test_the_same_run_gives_the_same_bytes():
    assert render_page(a_run(names=POINTS)) == render_page(a_run(names=POINTS))


def test_the_page_of_many_points_stays_small():
    assert len(render_page(a_run(names=CONDITIONS[1:] + POINTS, explained=True))) < 300_000


# report.md --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [(), CONDITIONS[1:], POINTS])
def test_the_page_and_the_text_have_the_same_rows(names):
    report = a_run(names=names, explained=True)
    tables = [table for section in report_sections(report) for table in section.tables]
    cells = Page(render_page(report)).said("td")
    lines = render_markdown(report).splitlines()
    assert {"Top neurons", "Split-half stability", "Completeness gap", "Provenance"} <= {
        table.title for table in tables
    }
    for table in tables:
        written = [
            markdown_table(list(map(escaped, table.headers)), [list(map(escaped, row))])
            for row in table.rows
        ]
        for row, text in zip(table.rows, written, strict=True):
            assert {cell for cell in row[1:] if cell} <= set(cells), table.title
            assert squeezed(text.splitlines()[-1]) in map(squeezed, lines), table.title


def squeezed(line: str) -> str:
    """A row of a markdown table without the blanks that line its columns up."""
    return re.sub(r" *\| *", "|", line)


def test_the_texts_of_report_md_are_no_markup():
    text = render_markdown(a_run(text=HOSTILE, explained=True))
    text = text.split("#### Commands of this run")[0]
    assert "<script" not in text.replace("\\<script", "")
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_no_command_ends_the_fence_it_stands_in():
    text = render_markdown(a_run(text="a ``` b ```` c")).split("#### Commands of this run")[1]
    assert text.strip().splitlines()[0] == "`````sh"
    assert text.strip().splitlines()[-1] == "`````"
