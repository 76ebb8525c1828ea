"""What a harness doc says, in few words, for people who read a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask

from neuronllm_eval.aqua.dataset_source import group_of
from neuronllm_eval.harness.tokenize import QuestionSet

FIRST_WORDS = 12
_QUESTION_WORDS = 30
_QUESTION_SIGNS = 200
_OPTION_WORDS, _OPTION_SIGNS = 8, 60
_MOST_OPTIONS = 26
_OPTION_COLUMNS = ("choices", "options", "endings")


def doc_lines(questions: QuestionSet) -> Iterator[dict[str, Any]]:
    """A line of `validation_docs.jsonl` for every doc, in doc order."""
    docs = questions.task.eval_docs
    for prompt in questions.prompts:
        doc = docs[prompt.doc_id]
        yield {
            "doc_id": prompt.doc_id,
            "question": question_words(questions.task, doc, _QUESTION_WORDS),
            "options": _options(questions.task, doc, len(prompt.options)),
            "group": group_of(doc),
        }


def question_words(task: ConfigurableTask, doc: Mapping[str, Any], most: int = FIRST_WORDS) -> str:
    """How a doc's question begins; its prompt, where the data have no question by that name."""
    question = doc.get("question")
    text = question if isinstance(question, str) else task.doc_to_text(doc)
    return _cut(str(text), most, _QUESTION_SIGNS)


def _options(task: ConfigurableTask, doc: Mapping[str, Any], n_options: int) -> list[str]:
    """How the options begin, in the order that they are shown in."""
    named = (doc.get(name) for name in _OPTION_COLUMNS)
    found: Any = next((each for each in named if each), None)
    if isinstance(found, Mapping):  # as ARC has them
        found = found.get("text")
    if not isinstance(found, (list, tuple)) or len(found) != n_options:
        found = task.doc_to_choice(doc)
    return [_cut(str(text), _OPTION_WORDS, _OPTION_SIGNS) for text in found[:_MOST_OPTIONS]]


def _cut(text: str, most_words: int, most_signs: int) -> str:
    words = text.split()
    short = " ".join(words[:most_words])
    if len(short) > most_signs:  # of a script without spaces, say
        return f"{short[:most_signs]}..."
    return short + ("..." if len(words) > most_words else "")
