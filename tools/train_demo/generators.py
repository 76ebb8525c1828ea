"""The four question families as seeded generators: pure Python, no torch.

1. Every question is made from *keys*: a fact, an unordered pair of operands, two adjectives,
   each plain or negated, a pair of words of one topic.
2. A key has one *home*, found by hashing its name: `training` or one of the shipped splits.
3. `draw` makes questions until all keys of one have the home that was asked for. So no key, and
   with it no near-duplicate, is shared between splits, and none of the keys of a shipped question
   is met in training. Facts are the exception: a model can only know a fact it was taught, so
   training does ask about them, but never with the options of a shipped question.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations

from tools.train_demo.facts import KNOWLEDGE
from tools.train_demo.keys import Question, home
from tools.train_demo.words import (
    ASPECTS,
    INTENSIFIERS,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    TOPIC_WORDS,
)

LARGEST_ADDEND = 20
LARGEST_MINUEND = 30
LARGEST_NUMBER = 99


def _three(rng: random.Random, pool: list[str], gold: str) -> tuple[str, str, str]:
    first, second, third = rng.sample([item for item in pool if item != gold], 3)
    return first, second, third


ANSWERED_SUBJECTS: list[tuple[str, str]] = [
    (s, k) for s, topic in KNOWLEDGE.items() for k in topic.pairs
]
_ANSWERS: dict[str, list[str]] = {s: sorted(set(t.pairs.values())) for s, t in KNOWLEDGE.items()}


def knowledge(rng: random.Random) -> Question:
    """A plain fact: capitals, animal classes, opposites and the like. Key: the fact."""
    subfamily, subject = rng.choice(ANSWERED_SUBJECTS)
    topic = KNOWLEDGE[subfamily]
    gold = topic.pairs[subject]
    # That hot is the opposite of cold is the same fact as that cold is the opposite of hot.
    fact = "/".join(sorted((subject, gold))) if topic.pairs.get(gold) == subject else subject
    return Question(
        text=rng.choice(topic.questions).format(k=subject),
        gold=gold,
        distractors=_three(rng, _ANSWERS[subfamily], gold),
        subfamily=subfamily,
        keys=frozenset({f"{subfamily}/{fact}"}),
    )


def _near(rng: random.Random, value: int) -> tuple[str, str, str]:
    """Wrong results of the size that slips produce."""
    steps = (-10, -7, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 7, 10)
    return _three(rng, [str(value + step) for step in steps if value + step >= 0], str(value))


def _sum(rng: random.Random) -> Question:
    a, b = rng.randint(1, LARGEST_ADDEND), rng.randint(1, LARGEST_ADDEND)
    wording = rng.choice(("What is {a} plus {b}?", "What is the sum of {a} and {b}?"))
    key = f"sum/{min(a, b)}/{max(a, b)}"
    text = wording.format(a=a, b=b)
    return Question(text, str(a + b), _near(rng, a + b), "sum", frozenset({key}))


def _difference(rng: random.Random) -> Question:
    a = rng.randint(3, LARGEST_MINUEND)
    b = rng.randint(1, min(a, LARGEST_ADDEND))
    wording = rng.choice(("What is {a} minus {b}?", "Take {b} from {a}. What is left?"))
    text = wording.format(a=a, b=b)
    return Question(
        text, str(a - b), _near(rng, a - b), "difference", frozenset({f"difference/{a}/{b}"})
    )


def _sequence(rng: random.Random) -> Question:
    start, step = rng.randint(1, 30), rng.randint(1, 6)
    terms = [start + i * step for i in range(5)]
    if rng.random() < 0.3:
        terms.reverse()
    text = "Which number comes next: {}, {}, {}, {}?".format(*terms[:4])
    # Rising or falling, the same four numbers are the same question.
    key = f"sequence/{min(terms[:4])}/{step}"
    return Question(text, str(terms[4]), _near(rng, terms[4]), "sequence", frozenset({key}))


def _comparison(rng: random.Random) -> Question:
    numbers = sorted(rng.sample(range(1, 61), 4))
    largest = rng.random() < 0.5
    gold = numbers.pop(-1 if largest else 0)
    text = f"Which number is the {'largest' if largest else 'smallest'}?"
    key = "comparison/" + "/".join(map(str, sorted([*numbers, gold])))
    first, second, third = map(str, numbers)
    return Question(text, str(gold), (first, second, third), "comparison", frozenset({key}))


def arithmetic(rng: random.Random) -> Question:
    """Sums, differences, sequences, comparisons. Key: the numbers, whatever their order."""
    return rng.choices((_sum, _difference, _sequence, _comparison), weights=(4, 4, 3, 2))[0](rng)


SENTIMENTS = ("positive", "negative", "neutral", "mixed")
_FORMS: dict[str, str] = {
    "plain": "the {aspect} was {more}{word}",
    "not": "the {aspect} was not {more}{word}",
    "never": "the {aspect} was never {more}{word}",
    "never call": "I would never call the {aspect} {more}{word}",
}
_FORM_WEIGHTS = (6, 2, 2, 2)


def _clause(rng: random.Random, feeling: int, aspect: str) -> tuple[str, str]:
    """One clause with the given feeling (1, -1, or 0), and its adjective, plain or negated."""
    form = rng.choices(list(_FORMS), weights=_FORM_WEIGHTS)[0]
    if feeling == 0:
        word = rng.choice(NEUTRAL)
    else:
        word = rng.choice(POSITIVE if (feeling > 0) == (form == "plain") else NEGATIVE)
    more = rng.choice(INTENSIFIERS) + " " if feeling and rng.random() < 0.35 else ""
    clause = _FORMS[form].format(aspect=aspect, more=more, word=word)
    return clause, f"{word}/{'plain' if form == 'plain' else 'negated'}"


def sentiment(rng: random.Random) -> Question:
    """A short review of two clauses. Key: the two adjectives, each plain or negated."""
    label = rng.choice(SENTIMENTS)
    if label == "mixed":
        feelings = rng.choice(((1, -1), (-1, 1)))
    elif label == "neutral":
        feelings = (0, 0)
    else:
        one = 1 if label == "positive" else -1
        feelings = rng.choice(((one, one), (one, 0), (0, one)))
    aspects = rng.sample(ASPECTS, 2)
    first, part = _clause(rng, feelings[0], aspects[0])
    second, other_part = _clause(rng, feelings[1], aspects[1])
    review = first + rng.choice((", and ", ", but ", " and ", "; also, ")) + second
    wording = rng.choice(
        ("What is the sentiment of this review? {}", "How does the writer feel? {}")
    )
    wrong = tuple(other for other in SENTIMENTS if other != label)
    n_negated = (part + other_part).count("negated")
    return Question(
        text=wording.format(review[0].upper() + review[1:] + "."),
        gold=label,
        distractors=(wrong[0], wrong[1], wrong[2]),
        subfamily=("no negation", "one negation", "two negations")[n_negated],
        keys=frozenset({"+".join(sorted((part, other_part)))}),
    )


_REPORTS = (
    "The report mentions the {}, the {} and the {}.",
    "People spoke about a {}, then a {}, then a {}.",
    "Yesterday the {} and the {} were seen near the {}.",
    "In this story a {} meets a {} and a {}.",
    "The article is about the {}, the {} and the {}.",
)


def topic(rng: random.Random) -> Question:
    """Three words, at least two of one topic. Keys: each pair of words of that topic."""
    gold = rng.choice(list(TOPIC_WORDS))
    others = [name for name in TOPIC_WORDS if name != gold]
    # Three words of one topic share a home far less often than two do, so ask for them more often.
    intruder = rng.choice(others) if rng.random() < 0.2 else None
    members = rng.sample(TOPIC_WORDS[gold], 2 if intruder else 3)
    words = [*members, rng.choice(TOPIC_WORDS[intruder])] if intruder else members.copy()
    rng.shuffle(words)
    distractors = list(_three(rng, others, gold))
    if intruder and intruder not in distractors and rng.random() < 0.7:
        distractors[0] = intruder  # the majority has to decide, not the mere presence of a word
    wording = rng.choice(("What is the topic? {}", "Which topic fits this text? {}"))
    first, second, third = distractors
    return Question(
        text=wording.format(rng.choice(_REPORTS).format(*words)),
        gold=gold,
        distractors=(first, second, third),
        subfamily="with an intruder" if intruder else "of one topic",
        keys=frozenset("+".join(pair) for pair in combinations(sorted(members), 2)),
    )


GENERATORS: dict[str, Callable[[random.Random], Question]] = {
    "knowledge": knowledge,
    "arithmetic": arithmetic,
    "sentiment": sentiment,
    "topic": topic,
}


def draw(family: str, split: str, rng: random.Random) -> Question:
    """One question of the family, all of whose keys live in `split`."""
    while True:
        question = GENERATORS[family](rng)
        if all(home(family, key) == split for key in question.keys):
            return question
