"""Parse a benchmark's prompt: stem, options, cue. Pure text.

A harness task gives its prompt only as a whole (`doc_to_text`). To shuffle the options, the stem
has to be separated from the option list and from the cue after it:

1. Where the task's choices are labels (`labels_of`), the options are what the prompt shows after
   these labels (`lettered_options`). A reading all of whose options are separate texts of the doc
   is certain; another is accepted only if it is the only reading.
2. Where the choices are texts, a list of them in the prompt is removed (`text_stem`).
3. The cue at the end ("Answer:") and the heading of the list ("Options:") are removed where they
   are known words for these. All other text is kept.

Where a prompt can be read in two ways, or shows another list than the choices, the doc is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from neuronllm_eval.errors import DocError
from neuronllm_eval.harness.aqua_conversion.prompt_cues import (
    CUE_BEHIND_OPTION,
    without_cue,
    without_cue_behind_list,
    without_heading,
)

Span = tuple[int, int]
Brackets = tuple[str, str]

# What stands around a label before an option; the first style that fits is used.
_BRACKETS: tuple[Brackets, ...] = (
    ("(", ")"),
    ("[", "]"),
    ("", "."),
    ("", ")"),
    ("", ":"),
    ("", "："),
    ("", "、"),
    ("", "．"),
    ("", "-"),
    ("", " -"),
    ("", " –"),
)
# Accepted only where the doc has the options as texts.
_LOOSE: tuple[Brackets, ...] = (("", ","), ("", " "))
_INLINE = _BRACKETS[:4]
# Labels by which a list is known even where the prompt shows none.
_LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ALPHABETS = (_LATIN, _LATIN.lower(), "أبجدهوزح", "ΑΒΓΔΕΖΗΘ", "АБВГДЕЖЗ")
_NUMBERS = tuple(map(str, range(1, 27)))
_BULLET = re.compile(r"\s*(?:[-*•–—]|\(\w{1,2}\)|\[\w{1,2}\]|\w{1,2}\s?[.):：、．–-])?\s*")
# Before every option of a list may stand the same word, such as `choice:`.
_LONGEST_BULLET = 20


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its cue.

    Attributes:
        stem: all text but options and cue.
        options: the options in the order shown, `[n_options]`.
        labels: their labels, `[n_options]`.
    """

    stem: str
    options: tuple[str, ...]
    labels: tuple[str, ...]


def label_of(choice: str) -> str | None:
    """The letter or number that a choice consists of, without brackets; None if it is a text."""
    # The tatweel lengthens an Arabic letter that stands alone.
    bare = choice.strip().strip("()[].:").strip().removesuffix("ـ")
    is_number = bare.isdecimal() and len(bare) <= 2
    return bare if is_number or (len(bare) == 1 and bare.isalpha()) else None


def labels_of(choices: Sequence[str]) -> tuple[str, ...] | None:
    """The choices as labels, if all are labels and no two alike."""
    labels = [label for choice in choices if (label := label_of(choice)) is not None]
    whole = len(labels) == len(choices) == len(set(labels)) and len(labels) > 1
    return tuple(labels) if whole else None


def begins_alphabet(labels: Sequence[str]) -> bool:
    """Whether labels are the first letters of an alphabet, in any order."""
    known = [set(alphabet[: len(labels)]) for alphabet in _ALPHABETS]
    return len(labels) > 1 and set(labels) in known


def labelled_texts(choices: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Labels and texts of choices such as `(A) a text`; None if they have another form.

    The labels must be the first of an alphabet or of the numbers, in order and in one style.
    """
    for brackets in _BRACKETS[:4]:
        pattern = "".join(map(re.escape, (brackets[0], "@", brackets[1]))).replace(
            "@", r"(\w{1,2})"
        )
        matches = [re.match(rf"\s*{pattern}\s*(\S.*)", choice, re.DOTALL) for choice in choices]
        if len(matches) < 2 or not all(matches):
            continue
        labels = tuple(match[1] for match in matches if match)
        runs = [*map(tuple, _ALPHABETS), _NUMBERS]
        if any(labels == run[: len(labels)] for run in runs):
            return labels, tuple(match[2].strip() for match in matches if match)
    return None


def texts_in(doc: Any) -> Iterator[str]:
    """Every text and number in a doc, at any depth."""
    if isinstance(doc, str):
        yield doc
    elif isinstance(doc, (int, float)):
        yield str(doc)
    elif isinstance(doc, dict):
        for value in doc.values():
            yield from texts_in(value)
    elif isinstance(doc, (list, tuple)):
        for value in doc:
            yield from texts_in(value)


def lettered_options(prompt: str, choices: Sequence[str], doc: Any) -> ParsedPrompt | None:
    """The options that a prompt shows after labels.

    Args:
        prompt: the whole prompt.
        choices: the labels, with or without brackets, `[n_choices]`.
        doc: the doc it was made from; options that are separate texts of it are certain.

    Returns:
        The stem and as many options as choices; fewer only where the choices are bracketed, the
        prompt shows these choices, and only a cue follows the last. None where
        the labels are not found.

    Raises:
        DocError: the prompt can be read in two ways, or shows more options than there are choices.
    """
    labels = labels_of(choices)
    if labels is None:
        return None
    texts = frozenset(text.strip() for text in texts_in(doc)) - {""}
    orders = list(dict.fromkeys((labels, tuple(sorted(labels, key=_order)))))
    for order in orders:
        if (certain := _read_certain(prompt, order, texts)) is not None:
            return certain
    are_numbers = all(choice.strip().isdecimal() for choice in choices)
    for order in orders:
        if (plain := _read_plain(prompt, order)) is not None:
            if are_numbers:
                raise _ambiguous(labels, "the numbers may be labels or counts")
            return plain
    return _read_fewer(prompt, choices, labels)


def _order(label: str) -> tuple[int, str]:
    """Sorts 2 before 10."""
    return (int(label), "") if label.isdecimal() else (0, label)


def _read_certain(
    prompt: str, labels: tuple[str, ...], texts: frozenset[str]
) -> ParsedPrompt | None:
    """The reading all of whose options are texts of the doc."""
    readings: dict[tuple[Span, ...], ParsedPrompt] = {}

    def is_text(start: int, end: int) -> bool:
        return _bare(prompt[start:end]) in texts or prompt[start:end].strip() in texts

    def is_last(start: int) -> bool:
        return _longest_text(prompt[start:], texts) is not None

    for brackets in (*_BRACKETS, *_LOOSE):
        spans = _spans(prompt, labels, brackets, True, True)
        for run in _runs(spans, is_text, is_last):
            rest = prompt[run[-1][1] :].lstrip()
            last = _longest_text(rest, texts) or ""
            readings[run] = _split_at(prompt, labels, run, brackets, last, rest[len(last) :], texts)
    if len(readings) > 1:
        raise _ambiguous(labels, "the same options are listed more than once")
    return next(iter(readings.values()), None)


def _bare(option: str) -> str:
    """An option without its separator."""
    return option.strip().rstrip(",;").rstrip()


def _read_plain(prompt: str, labels: tuple[str, ...]) -> ParsedPrompt | None:
    """The only reading of a prompt whose options no column of the doc holds."""
    for inline in (False, True):
        styles = [(brackets, inline) for brackets in (_INLINE if inline else _BRACKETS)]
        found = [(run, style[0]) for style in styles for run in _all_runs(prompt, labels, style)]
        if len(found) > 1:
            raise _ambiguous(labels, "its labels occur more than once")
        if found:
            run, brackets = found[0]
            everywhere = [(each, True) for each in _INLINE]
            if any(_all_runs(prompt, labels, style, set(run)) for style in everywhere):
                raise _ambiguous(labels, "it lists options twice")
            return _plain(prompt, labels, run, brackets)
    return None


def _all_runs(
    prompt: str,
    labels: Sequence[str],
    style: tuple[Brackets, bool],
    taken: Collection[Span] = (),
) -> list[tuple[Span, ...]]:
    """Up to two runs of labels in a style, whatever is between them.

    Args:
        prompt: where.
        labels: the labels, in order.
        style: brackets, and whether a label may stand within a line.
        taken: spans of another run; spans that overlap with one do not count.
    """
    free = [
        [one for one in spans if not any(one[0] < end and start < one[1] for start, end in taken)]
        for spans in _spans(prompt, labels, *style)
    ]
    return _runs(free, lambda start, end: True, lambda start: True)


def _plain(
    prompt: str, labels: tuple[str, ...], run: tuple[Span, ...], brackets: Brackets
) -> ParsedPrompt:
    rest = prompt[run[-1][1] :].lstrip()
    line, _, behind = rest.partition("\n")
    last = CUE_BEHIND_OPTION.sub("", line).strip()
    found = _split_at(prompt, labels, run, brackets, last, behind)
    # The options of a list have one form: where the others are of one line, so is the last.
    others_are_lines = all("\n" not in option for option in found.options[:-1])
    if not others_are_lines and without_cue_behind_list(behind):
        raise _ambiguous(labels, "the end of the last option is unclear")
    return found


def _read_fewer(
    prompt: str, choices: Sequence[str], labels: tuple[str, ...]
) -> ParsedPrompt | None:
    """Fewer options than choices: only in the choices' brackets, and with nothing after them."""
    bare = [choice.strip() for choice in choices]
    if not all(choice == f"({label})" for choice, label in zip(bare, labels, strict=True)):
        return None
    for count in range(len(labels) - 1, 1, -1):
        runs = _all_runs(prompt, labels[:count], (("(", ")"), False))
        if len(runs) > 1:
            raise _ambiguous(labels, "its labels occur more than once")
        if runs:
            behind = prompt[runs[0][-1][1] :].lstrip().partition("\n")[2]
            is_end = not without_cue_behind_list(behind)
            return _plain(prompt, labels[:count], runs[0], ("(", ")")) if is_end else None
    return None


def _spans(
    prompt: str, labels: Sequence[str], brackets: Brackets, inline: bool, close: bool = False
) -> list[list[Span]]:
    """(start, end) of labels with their brackets, wherever they can precede an option.

    Args:
        prompt: where.
        labels: the letters or numbers.
        brackets: what stands around each.
        inline: whether it may be within a line.
        close: whether the option may then follow without a space.

    Returns:
        `[n_labels][n_spans]`; `[]` if one of the labels does not occur.
    """
    before = r"(?:(?<=\s)|^)" if inline else r"(?:(?<=\n)|^)[^\S\n]*"
    after = r"(?=\s)" if inline and not close and not brackets[0] else ""
    found = []
    for label in labels:
        # The tatweel lengthens an Arabic letter that stands alone.
        marks = [brackets[0] + label + stretch + brackets[1] for stretch in ("", "ـ")]
        spans = [
            match.span()
            for mark in marks
            if mark in prompt
            for match in re.finditer(before + re.escape(mark) + after, prompt)
        ]
        if not spans:
            return []
        found.append(spans)
    return found


def _runs(
    spans: Sequence[Sequence[Span]],
    is_option: Callable[[int, int], bool],
    is_last: Callable[[int], bool],
) -> list[tuple[Span, ...]]:
    """Up to two ways to take one span of each label, in order.

    Args:
        spans: of each label, `[n_labels][n_spans]`; `[]` for no run.
        is_option: whether the text from one position to another can be an option.
        is_last: whether the text from a position can begin with the last option.
    """
    if not spans:
        return []
    # From the last label to the first: the runs that begin at each of its spans.
    runs: dict[Span, list[tuple[Span, ...]]] = {
        span: [(span,)] for span in spans[-1] if is_last(span[1])
    }
    for label_spans in reversed(spans[:-1]):
        longer: dict[Span, list[tuple[Span, ...]]] = {}
        for span in label_spans:
            found: list[tuple[Span, ...]] = [
                (span, *run)
                for following, rest in runs.items()
                if following[0] >= span[1] and is_option(span[1], following[0])
                for run in rest
            ]
            if found:
                longer[span] = found[:2]
        runs = longer
    return [run for each in runs.values() for run in each][:2]


def _split_at(
    prompt: str,
    labels: tuple[str, ...],
    run: tuple[Span, ...],
    brackets: Brackets,
    last: str,
    behind: str,
    texts: frozenset[str] = frozenset(),
) -> ParsedPrompt:
    """The prompt divided by a run of labels; text after the list that is not a cue is kept."""
    ends = [start for start, _ in run[1:]]
    between = [prompt[mark[1] : end].strip() for mark, end in zip(run, ends, strict=False)]
    options = [
        _bare(text) if text not in texts and _bare(text) in texts else text for text in between
    ]
    kept = without_cue_behind_list(behind)
    mark = re.escape(brackets[0]) + r"\w{1,2}ـ?" + re.escape(brackets[1])
    if re.match(mark + r"\s", kept) and brackets not in _LOOSE:
        raise _ambiguous(labels, "more options are listed than the task has choices")
    stem = without_heading(prompt[: run[0][0]])
    return ParsedPrompt("\n".join(filter(None, (stem, kept))), (*options, last), labels)


def _longest_text(rest: str, texts: frozenset[str]) -> str | None:
    """The longest text of the doc that is the rest of a prompt up to a cue or a line's end."""
    rest = rest.lstrip()
    found = [text for text in texts if rest.startswith(text) and _ends(rest[len(text) :])]
    return max(found, key=len, default=None)


def _ends(behind: str) -> bool:
    line = behind.partition("\n")[0]
    return not line.strip() or CUE_BEHIND_OPTION.fullmatch(line) is not None


def _ambiguous(labels: Sequence[str], why: str) -> DocError:
    return DocError(
        f"the prompt can be read in two ways: {why}",
        expected=f"one list of options, with the labels {', '.join(labels)}",
        remedy="exclude the question",
        reason="options ambiguous",
    )


def text_stem(prompt: str, choices: Sequence[str]) -> str:
    """The stem of a prompt whose choices are texts: without cue, and without a list of them.

    Raises:
        DocError: the prompt shows a lettered list that is not that of the choices.
    """
    texts = tuple(choice.strip() for choice in choices)
    _require_own_texts(prompt, texts)
    stem = without_cue(prompt)
    is_listed = all(text in stem for text in texts)
    for labels in (*map(tuple, _ALPHABETS[:2]), _NUMBERS) if is_listed else ():
        found = _read_certain(prompt, labels[: len(texts)], frozenset(texts))
        if found is not None and found.options == texts:
            stem = found.stem
            break
    if is_listed:
        stem = without_cue(without_option_list(stem, texts))
    letters = _LATIN[: len(texts)]
    for brackets in _BRACKETS[:4]:
        if len(texts) > 1 and _all_runs(stem, letters, (brackets, False)):
            raise DocError(
                "the prompt shows a list with the letters "
                f"{', '.join(letters)}, which is not that of the choices",
                expected="choices that are listed as they are, or not at all",
                remedy="exclude the question",
                reason="another lettered list",
            )
    return stem


def _require_own_texts(prompt: str, texts: Sequence[str]) -> None:
    """Refuse choices such as `Option A`, `Option B`, which the prompt explains."""
    if len(texts) < 2:
        return
    prefixes = {text.rpartition(" ")[0] for text in texts}
    labels = labels_of([text.rpartition(" ")[2] for text in texts])
    word = max(prefixes).rpartition(" ")[2]
    if (
        len(prefixes) == 1
        and word
        and labels
        and all(re.search(rf"\b{re.escape(word)} {label}\b", prompt) for label in labels)
    ):
        raise DocError(
            f"the choices, such as {texts[0]!r}, name options of the prompt by their labels",
            expected="the options' texts as choices, or their labels alone",
            remedy="choose another task",
            reason="choices name labels",
        )


def without_option_list(prompt: str, texts: Sequence[str]) -> str:
    """A prompt without the lines that list its choices in order, and without their heading."""
    end = len(prompt)
    while texts and all(texts) and (start := prompt.rfind(texts[-1], 0, end)) >= 0:
        behind = start + len(texts[-1])
        first = _list_start(prompt, texts, behind)
        if first is not None and not prompt[behind:].partition("\n")[0].strip():
            return without_heading(prompt[:first]) + prompt[behind:]
        end = behind - 1
    return prompt


def _list_start(prompt: str, texts: Sequence[str], end: int) -> int | None:
    """Where a list of texts, each at the end of a line, begins if it ends at a place."""
    before = []
    for text in reversed(texts):
        start = end - len(text)
        if start < 0 or prompt[start:end] != text:
            return None
        line = prompt.rfind("\n", 0, start) + 1
        before.append(prompt[line:start])
        end = len(prompt[:line].rstrip())
    alike = len(set(before)) == 1 and len(before[0]) <= _LONGEST_BULLET
    return line if alike or all(map(_BULLET.fullmatch, before)) else None
