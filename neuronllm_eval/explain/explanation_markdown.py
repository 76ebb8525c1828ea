"""`explain.md` and what the console shows of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from neuronllm_eval.aqua.proxies import LETTERS
from neuronllm_eval.explain.evidence import Mean
from neuronllm_eval.explain.explanation import (
    Explanation,
    NeuronExplanation,
    SetOverlap,
)
from neuronllm_eval.explain.letter_bias import LETTER_NEURON
from neuronllm_eval.explain.logit_lens import TokenEffect
from neuronllm_eval.formats.markdown import escaped, markdown_table
from neuronllm_eval.neurons.overlap import COMPARED, Overlap

_SHOWN_TOKENS = 5
_SHOWN_ON_CONSOLE = 3
_TOKENS_NOTE = (
    "The direction that a neuron writes where its activation is positive, through the final norm "
    "(gain and centring; its scale is left out) and the unembedding: the tokens whose logits it "
    "raises and lowers most, in standard deviations over the vocabulary. Where its activation is "
    "negative it does the reverse: positive % is the share of prompts on which it is above 0. What "
    "later layers make of it is not in this."
)
_LETTERS_NOTE = (
    "By the letter of the right option: mean over the prompts of all questions that chose the "
    "neurons. The letter-bias index is the share of its second moment that lies "
    f"between letters: 0 where it is the same for each, 1 where the letters cancel out; from "
    f"{LETTER_NEURON:g} on a neuron is called a letter neuron. With few prompts for each letter it "
    "is too high."
)
_ALONE_NOTE = (
    "Value: the method's, a prompt. Knockout: F less that without this neuron alone, F being the "
    "right option's log-probability among the options; doubling: F with twice the neuron less F. "
    "Log-nats, with standard errors by question. A knockout above 0 says that the neuron helps. "
    "Where the signs of value and knockout differ, the value is about its way (all of the layer's "
    "neurons growing together, say), and not about the neuron as it is in the model."
)
_CLEAR = 2.0  # standard errors
_OVERLAP_NOTE = (
    "Jaccard index (neurons in both sets over those in either), and in brackets what is expected "
    "of random sets with as many neurons in each layer."
)


def render(explanation: Explanation) -> str:
    """The content of `explain.md`."""
    asked = explanation.n_questions
    lines = [
        f"## What the neurons of {escaped(explanation.task)} do",
        "",
        f"Model {escaped(explanation.model)}; neurons are those of the method "
        f"{escaped(explanation.method)}. Neurons are named layer:index. {asked} of the "
        f"{explanation.n_chosen_on} questions that chose them were asked again for activations "
        "and for single questions.",
        "",
        "### Tokens",
        "",
        *_tokens_table(explanation),
        "### Alone",
        "",
        markdown_table(
            ("neuron", "kind", "value", "knockout", "doubling"),
            [
                [
                    *_name(each),
                    f"{each.value:+.3g}",
                    _error_cell(each.knockout),
                    _error_cell(each.doubling),
                ]
                for each in explanation.neurons
            ],
        ),
        "",
        f"{_alone(explanation)} {_ALONE_NOTE}",
        "",
        "### By gold letter",
        "",
        _letters_table(explanation),
        "",
        f"Values: {explanation.measures}. {_LETTERS_NOTE}",
        "",
        "### Activation",
        "",
        markdown_table(
            ("neuron", "kind", "on right answers", "on wrong answers"),
            [
                [*_name(each), _mean_cell(each.right), _mean_cell(each.wrong)]
                for each in explanation.neurons
            ],
        ),
        "",
        "Mean activation (standard error by question; prompts), at the scored position, or over "
        "the context where the neurons were chosen at all positions.",
        "",
        "### Questions",
        "",
        _questions_table(explanation),
        "",
        "The questions with the highest values, then those with the lowest, summed over a "
        "question's prompts; an attribution says how far the neuron helped or hurt.",
        "",
        "### Layers",
        "",
        markdown_table(
            ("layer", *explanation.spread),
            [
                [str(layer), *map(str, counts)]
                for layer, counts in enumerate(zip(*explanation.spread.values(), strict=True))
            ],
        ),
        "",
        f"All chosen neurons: {_totals(explanation)}.",
        "",
    ]
    if explanation.overlaps:
        lines += ["### Overlap with other runs", "", overlap_table(explanation.overlaps), ""]
    return "\n".join(lines)


def summary(explanation: Explanation) -> str:
    """What the console shows of a run: a row for each neuron."""
    rows = [
        [
            *_name(each),
            _tokens_cell(each.mostly_promotes, _SHOWN_ON_CONSOLE),
            _index_cell(each),
            f"{each.value:+.3g}",
            _error_cell(each.knockout),
        ]
        for each in explanation.neurons
    ]
    headers = ("neuron", "kind", "mostly promotes", "letter bias", "value", "knockout")
    title = f"## {escaped(explanation.task)}, neurons of {escaped(explanation.method)}"
    parts = [title, markdown_table(headers, rows)]
    parts += [f"Tokens: {escaped(note)}." for note in explanation.notes]
    parts.append(_alone(explanation))
    parts.append(f"By layer: {', '.join(_by_layer(explanation))}.")
    return "\n\n".join(parts) + "\n"


def overlap_table(overlaps: Sequence[SetOverlap]) -> str:
    """Overlaps of sets, a row for every two runs, and what the figures mean."""
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for each in overlaps:
        cells.setdefault(each.runs, {})[each.sets] = _overlap_cell(each.overlap)
    rows = [
        [*map(escaped, runs), *(by_sets.get(sets, "") for sets in COMPARED)]
        for runs, by_sets in cells.items()
    ]
    headers = ("run", "other run", *(f"{one}, other's {other}" for one, other in COMPARED))
    return f"{markdown_table(headers, rows)}\n\n{_OVERLAP_NOTE}"


def _overlap_cell(found: Overlap | None) -> str:
    if found is None:
        return "other weights"
    if found.jaccard is None or found.chance is None:
        return ""
    return f"{found.jaccard:.2f} ({found.chance:.2f})"


def _name(each: NeuronExplanation) -> tuple[str, str]:
    return f"{each.neuron.layer}:{each.neuron.index}", each.kind


def _tokens_table(explanation: Explanation) -> list[str]:
    rows = [
        [
            *_name(each),
            f"{each.neuron.score:+.3g}",
            f"{100 * each.positive:.0f}",
            _tokens_cell(each.tokens.promotes),
            _tokens_cell(each.tokens.demotes),
        ]
        for each in explanation.neurons
    ]
    headers = ("neuron", "kind", "score", "positive %", "promotes", "demotes")
    table = markdown_table(headers, rows)
    return [table, "", _TOKENS_NOTE, "", *(f"Note: {escaped(n)}.\n" for n in explanation.notes)]


def _tokens_cell(effects: Sequence[TokenEffect], count: int = _SHOWN_TOKENS) -> str:
    # In quotes, as white space is part of a token.
    return ", ".join(
        f"{escaped(json.dumps(each.text, ensure_ascii=False))} {each.effect:+.1f}"
        for each in effects[:count]
    )


def _letters_table(explanation: Explanation) -> str:
    heads = [
        f"{letter} ({count})"
        for letter, count in zip(LETTERS, explanation.letter_counts, strict=False)
    ]
    rows = [
        [
            *_name(each),
            *("" if mean is None else f"{mean:+.3g}" for mean in each.letters.means),
            _index_cell(each),
        ]
        for each in explanation.neurons
    ]
    return markdown_table(("neuron", "kind", *heads, "letter bias"), rows)


def _index_cell(each: NeuronExplanation) -> str:
    index = each.letters.index
    return "" if index is None else f"{index:.2f} ({each.letters.reading})"


def _mean_cell(mean: Mean) -> str:
    if mean.value is None:
        return ""
    error = "" if mean.stderr is None else f"{mean.stderr:.2g}; "
    return f"{mean.value:+.3g} ({error}{mean.n_prompts})"


def _error_cell(mean: Mean) -> str:
    if mean.value is None:
        return ""
    return f"{mean.value:+.3g}" + ("" if mean.stderr is None else f" ({mean.stderr:.1g})")


def _alone(explanation: Explanation) -> str:
    """How many neurons do by themselves what their kind says."""
    parts = []
    for kind, sign, others in (("good", 1, "hurt"), ("bad", -1, "help")):
        signs = [_sign(each.knockout) * sign for each in explanation.neurons if each.kind == kind]
        if signs:
            does = "help" if sign > 0 else "hurt"
            counts = f"{signs.count(1)} {does}, {signs.count(-1)} {others}"
            parts.append(f"of {len(signs)} {kind} neurons {counts}")
    text = "; ".join(parts)
    return f"Each alone, by more than {_CLEAR:g} standard errors: {text}."


def _sign(mean: Mean) -> int:
    if mean.value is None or mean.stderr is None or abs(mean.value) <= _CLEAR * mean.stderr:
        return 0
    return 1 if mean.value > 0 else -1


def _questions_table(explanation: Explanation) -> str:
    rows = [
        [*_name(each), f"{one.attribution:+.3g}", escaped(one.question_id), escaped(one.text)]
        for each in explanation.neurons
        for one in (*each.helped, *each.hurt)
    ]
    return markdown_table(("neuron", "kind", "value", "question", "first words"), rows)


def _totals(explanation: Explanation) -> str:
    return ", ".join(f"{sum(counts)} {kind}" for kind, counts in explanation.spread.items())


def _by_layer(explanation: Explanation) -> list[str]:
    return [f"{kind} {counts}" for kind, counts in explanation.spread.items()]
