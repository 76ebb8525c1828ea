"""`explain.md`, from the template `explain.md.j2`, and what the console shows of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2

from neuronllm_eval.aqua.proxies import LETTERS
from neuronllm_eval.explain.evidence import Mean
from neuronllm_eval.explain.explanation import (
    LETTER_NEURON,
    Explanation,
    LetterProfile,
    NeuronExplanation,
    SetOverlap,
)
from neuronllm_eval.explain.token_effects import TokenEffect
from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.neurons.neuron_set import COMPARED, Overlap

_SHOWN_TOKENS = 5
_SHOWN_ON_CONSOLE = 3
_CLEAR = 2.0  # standard errors
_OVERLAP_NOTE = (
    "Jaccard index (neurons in both sets over those in either), and in brackets what is expected "
    "of random sets with as many neurons in each layer."
)


def render(explanation: Explanation) -> str:
    """The content of `explain.md`."""
    return _environment().get_template("explain.md.j2").render(
        x=explanation,
        letters=list(zip(LETTERS, explanation.letter_counts, strict=False)),
        letter_neuron=f"{LETTER_NEURON:g}",
        single_effects=_single_effects(explanation),
        by_layer=list(zip(*explanation.spread.values(), strict=True)),
        totals=", ".join(f"{sum(counts)} {kind}" for kind, counts in explanation.spread.items()),
        overlaps=overlap_table(explanation.overlaps),
    )  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701 - markdown; what comes from elsewhere is escaped
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "escaped": escaped,
        "signed": _signed,
        "name": lambda each: " | ".join(_name(each)),
        "tokens": _tokens,
        "effect": _effect,
        "letter_bias": _letter_bias,
        "activation": _activation,
    }
    return environment


def summary(explanation: Explanation) -> str:
    """What the console shows of a run: a row for each neuron."""
    rows = [
        [
            *_name(each),
            _tokens(each.listed_tokens().on_most_prompts.promotes, _SHOWN_ON_CONSOLE),
            _letter_bias(each.letters),
            _signed(each.value),
            _effect(each.knockout),
        ]
        for each in explanation.neurons
    ]
    headers = ("neuron", "kind", "mostly promotes", "letter bias", "value", "knockout")
    by_layer = ", ".join(f"{kind} {counts}" for kind, counts in explanation.spread.items())
    paragraphs = [
        f"## {escaped(explanation.task)}, neurons of {escaped(explanation.method)}",
        markdown_table(headers, rows),
        *(f"Tokens: {escaped(note)}." for note in explanation.notes),
        _single_effects(explanation),
        f"By layer: {by_layer}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def overlap_table(overlaps: Sequence[SetOverlap]) -> str:
    """Overlaps of sets, a row for every two runs, and what the figures mean."""
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for each in overlaps:
        cells.setdefault(each.runs, {})[each.sets] = _overlap(each.overlap)
    rows = [
        [*map(escaped, runs), *(by_sets.get(sets, "") for sets in COMPARED)]
        for runs, by_sets in cells.items()
    ]
    headers = ("run", "other run", *(f"{one}, other's {other}" for one, other in COMPARED))
    return f"{markdown_table(headers, rows)}\n\n{_OVERLAP_NOTE}"


def _overlap(overlap: Overlap | None) -> str:
    if overlap is None:
        return "other weights"
    if overlap.jaccard is None or overlap.chance is None:
        return ""
    return f"{overlap.jaccard:.2f} ({overlap.chance:.2f})"


def _name(each: NeuronExplanation) -> tuple[str, str]:
    return f"{each.neuron.layer}:{each.neuron.index}", each.kind


def _signed(value: float) -> str:
    return f"{value:+.3g}"


def _tokens(effects: Sequence[TokenEffect], count: int = _SHOWN_TOKENS) -> str:
    # In quotes, as white space is part of a token.
    return ", ".join(
        f"{escaped(json.dumps(each.text, ensure_ascii=False))} {each.effect:+.1f}"
        for each in effects[:count]
    )


def _letter_bias(letters: LetterProfile) -> str:
    return "" if letters.index is None else f"{letters.index:.2f} ({letters.reading})"


def _activation(mean: Mean) -> str:
    if mean.value is None:
        return ""
    error = "" if mean.stderr is None else f"{mean.stderr:.2g}; "
    return f"{mean.value:+.3g} ({error}{mean.n_prompts})"


def _effect(mean: Mean) -> str:
    if mean.value is None:
        return ""
    return f"{mean.value:+.3g}" + ("" if mean.stderr is None else f" ({mean.stderr:.1g})")


def _single_effects(explanation: Explanation) -> str:
    """How many neurons alone do what their set is named for."""
    counts = []
    for kind, direction, others in (("good", "help", "hurt"), ("bad", "hurt", "help")):
        effects = [_direction(each.knockout) for each in explanation.neurons if each.kind == kind]
        if effects:
            counts.append(
                f"of {len(effects)} {kind} neurons {effects.count(direction)} {direction}, "
                f"{effects.count(others)} {others}"
            )
    return f"Each alone, by more than {_CLEAR:g} standard errors: {'; '.join(counts)}."


def _direction(knockout: Mean) -> str:
    """`help`, `hurt`, or empty where the effect is within the error."""
    if knockout.value is None or knockout.stderr is None:
        return ""
    if abs(knockout.value) <= _CLEAR * knockout.stderr:
        return ""
    return "help" if knockout.value > 0 else "hurt"
