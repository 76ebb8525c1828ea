"""How questions and facts are put into text for training: prompts, open questions, statements."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tools.train_demo.facts import KNOWLEDGE
from tools.train_demo.generators import ANSWERED_SUBJECTS
from tools.train_demo.keys import Question
from tools.train_demo.questions import INSTRUCTION, format_question
from tools.train_demo.words import NEGATIVE, NEUTRAL, POSITIVE, TOPIC_WORDS

# The first is the one used for evaluation; the others teach the model not to lean on its words.
INSTRUCTIONS: tuple[str, ...] = (
    INSTRUCTION,
    "Answer the question with one letter.",
    "You are a careful student. Choose A, B, C or D.",
    "You are an expert. Pick the best option.",
    "Only one option is right. Give its letter.",
)

_WORD_STATEMENTS = ("The word {w} is {v}.", "A word like {w} sounds {v}.")
_TOPIC_STATEMENTS = ("A {w} is about {v}.", "The word {w} belongs to {v}.")
_COPY_QUESTIONS = ("Which option is {w}?", "Which option says {w}?", "Find the word {w}.")

_FEELING = (
    [(word, "positive") for word in POSITIVE]
    + [(word, "negative") for word in NEGATIVE]
    + [(word, "neutral") for word in NEUTRAL]
)
_MEMBERS = [(word, topic) for topic, words in TOPIC_WORDS.items() for word in words]


def exam_prompt(instruction: str | None, questions: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Instruction and lettered questions without any answers."""
    parts = [instruction] if instruction else []
    return "\n\n".join([*parts, *(format_question(text, choices) for text, choices in questions)])


def open_question(question: Question) -> str:
    """A question without options, up to and including `Answer:`."""
    return f"Question: {question.text}\nAnswer:"


def statement(rng: random.Random) -> str:
    """A plain fact: about a subject, a topic word or an adjective."""
    kind = rng.random()
    if kind < 0.75:
        subfamily, subject = rng.choice(ANSWERED_SUBJECTS)
        topic = KNOWLEDGE[subfamily]
        return "Fact: " + rng.choice(topic.statements).format(k=subject, v=topic.pairs[subject])
    templates, words = (_TOPIC_STATEMENTS, _MEMBERS) if kind < 0.9 else (_WORD_STATEMENTS, _FEELING)
    word, value = rng.choice(words)
    return "Fact: " + rng.choice(templates).format(w=word, v=value)


def copy_question(rng: random.Random, words: Sequence[str]) -> Question:
    """A question that only asks to find a word among the options."""
    gold, first, second, third = rng.sample(words, 4)
    text = rng.choice(_COPY_QUESTIONS).format(w=gold)
    return Question(text, gold, (first, second, third), "copy", frozenset())
