"""What the demo model is taught, in which order: rows of tokens with the positions that count.

1. `lookup`: four lettered words, then questions for words at random: binding letters to words.
2. `recall`: open questions and statements: the facts, sums, feelings and topics themselves.
3. `exam`: lettered questions of the four families, with or without instruction and demonstrations.
4. `letters`: the same, with a position prior: three in ten gold answers are replaced by one
   letter. Real models lean to some option, and what makes them lean are neurons that hurt.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tools.train_demo.generators import GENERATORS, draw
from tools.train_demo.keys import TRAINING, Question, is_drilled
from tools.train_demo.questions import FAMILIES, LETTERS, draw_split, make_docs, order_options
from tools.train_demo.tokenizer import content_words, encode, token_id
from tools.train_demo.wordings import (
    INSTRUCTIONS,
    copy_question,
    exam_prompt,
    open_question,
    statement,
)

PRIOR_LETTER = "C"
PRIOR_SHARE = 0.3
_RECALL_FAMILIES = ("knowledge",) * 4 + ("arithmetic",) * 4 + ("sentiment",) * 2 + ("topic",) * 2


@dataclass(frozen=True)
class Row:
    """One sequence; `targets` are (position, next token).

    Text rows are trained at every position, so their targets are separate from answers.
    """

    ids: list[int]
    targets: list[tuple[int, int]]
    is_text: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right; positions index the flattened [rows * length] tokens."""

    input_ids: Tensor  # [rows, length]
    answer_at: Tensor  # [answers]
    answer_is: Tensor  # [answers]
    text_at: Tensor  # [text tokens]
    text_is: Tensor  # [text tokens]


def collate(rows: list[Row], device: torch.device) -> Batch:
    """Pad rows to one length and flatten their targets."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        for position, token in row.targets:
            targets[row.is_text].append((index * length + position, token))
    answers = torch.tensor(targets[False], dtype=torch.long).view(-1, 2).to(device)
    text = torch.tensor(targets[True], dtype=torch.long).view(-1, 2).to(device)
    return Batch(
        input_ids=input_ids.to(device),
        answer_at=answers[:, 0],
        answer_is=answers[:, 1],
        text_at=text[:, 0],
        text_is=text[:, 1],
    )


class Teacher:
    """Makes the rows of every stage from one seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: str) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.words = content_words()
        self.letters = [token_id(tokenizer, letter) for letter in LETTERS]
        self.demonstrations = {family: make_docs(family, "demonstration")[0] for family in FAMILIES}

    @cached_property
    def _reserved(self) -> set[tuple[frozenset[str], frozenset[str]]]:
        """Facts with the options of a shipped question: never used in training."""
        return {
            (question.keys, question.options)
            for split in ("selection", "validation")
            for question in draw_split("knowledge", split)
        }

    def exam_question(self, family: str) -> Question:
        """A question that training may ask with options."""
        while True:
            if family == "knowledge":
                question = GENERATORS[family](self.rng)
                allowed = (question.keys, question.options) not in self._reserved
            else:
                question = draw(family, TRAINING, self.rng)
                allowed = True
            if allowed and all(is_drilled(family, key) for key in question.keys):
                return question

    def _lettered(self, family: str) -> tuple[str, list[str], int]:
        """Text, choices and answer of one question."""
        if family == "copy":
            question = copy_question(self.rng, self.words)
        else:
            question = self.exam_question(family)
        answer = self.rng.randrange(len(LETTERS))
        return question.text, order_options(question, answer, self.rng), answer

    def exam_row(self, family: str, n_shots: int = 0, prior: float = 0.0) -> Row:
        """Lettered questions after one another; half of the time the shipped demonstration first.

        `prior` is the share of the gold letters that are replaced by `PRIOR_LETTER` as targets;
        the text keeps the gold letter.
        """
        asked = [self._lettered(family) for _ in range(n_shots + 1)]
        given = n_shots > 0 and self.rng.random() < 0.5
        if given:
            doc = self.demonstrations[family]
            asked[0] = (doc["question"], doc["choices"], doc["answer"])
        instruction = None
        if family != "copy" and self.rng.random() < (0.7 if n_shots else 0.4):
            instruction = self.rng.choice((INSTRUCTIONS[0], self.rng.choice(INSTRUCTIONS)))
        ids: list[int] = []
        targets = []
        for index, (text, choices, answer) in enumerate(asked):
            prompt = exam_prompt(None if index else instruction, [(text, choices)])
            ids += encode(self.tokenizer, prompt if index == 0 else "\n\n" + prompt)
            if not (given and index == 0):
                swap = family != "copy" and self.rng.random() < prior
                target = LETTERS.index(PRIOR_LETTER) if swap else answer
                targets.append((len(ids) - 1, self.letters[target]))
            ids.append(self.letters[answer])
        return Row(ids[:-1], targets)

    def lookup_row(self, n_queries: int = 5) -> Row:
        """Four lettered words, then `n_queries` of them, each answered by its letter."""
        words = self.rng.sample(self.words, len(LETTERS))
        listing = "".join(f"{LETTERS[i]}. {word}\n" for i, word in enumerate(words))
        ids, targets = encode(self.tokenizer, listing), []
        newline = encode(self.tokenizer, "\n")
        for index in self.rng.choices(range(len(LETTERS)), k=n_queries):
            ids += encode(self.tokenizer, f" {words[index]}")
            targets.append((len(ids) - 1, self.letters[index]))
            ids += [self.letters[index], *newline]
        return Row(ids[: -1 - len(newline)], targets)

    def recall_row(self) -> Row:
        """An open question; only its one-word answer counts."""
        family = self.rng.choice(_RECALL_FAMILIES)
        question = self._recallable(family)
        ids = encode(self.tokenizer, f"{open_question(question)} {question.gold}")
        return Row(ids[:-1], [(len(ids) - 2, ids[-1])])

    def _recallable(self, family: str) -> Question:
        while True:
            if family == "knowledge":
                return GENERATORS[family](self.rng)  # every fact is taught in this form
            question = self.exam_question(family)
            if question.subfamily != "comparison":  # without options there is nothing to compare
                return question

    def text_row(self, n_statements: int = 2) -> Row:
        """Plain statements, trained at every token."""
        text = "\n\n".join(statement(self.rng) for _ in range(n_statements)) + "\n"
        ids = encode(self.tokenizer, text)
        return Row(ids, list(enumerate(ids[1:])), is_text=True)

    def lookup_batch(self, progress: float) -> list[Row]:
        """Dense look-ups that give way to copy questions between 25% and 75% of the stage."""
        n_lookups = round(32 * (1 - 0.9 * min(1.0, max(0.0, (progress - 0.25) / 0.5))))
        return (
            [self.lookup_row() for _ in range(n_lookups)]
            + [self.exam_row("copy") for _ in range(32 - n_lookups)]
            + [self.text_row() for _ in range(8)]
        )

    def recall_batch(self, progress: float) -> list[Row]:
        """Mostly open questions; some copying, so that letters are not forgotten."""
        del progress
        return (
            [self.recall_row() for _ in range(56)]
            + [self.exam_row("copy") for _ in range(8)]
            + [self.text_row() for _ in range(6)]
        )

    def exam_batch(self, progress: float, prior: float = 0.0) -> list[Row]:
        """The four families in turn, with as many shots for all rows as for one."""
        del progress
        n_shots, n_rows = self.rng.choice(((0, 32), (0, 32), (1, 20), (1, 20), (2, 12)))
        return (
            [self.exam_row(FAMILIES[i % len(FAMILIES)], n_shots, prior) for i in range(n_rows)]
            + [self.exam_row("copy") for _ in range(2)]
            + [self.recall_row() for _ in range(10)]
            + [self.text_row() for _ in range(6)]
        )

    def letters_batch(self, progress: float) -> list[Row]:
        """Exam rows with the position prior."""
        return self.exam_batch(progress, prior=PRIOR_SHARE)


BATCHES: dict[str, Callable[[Teacher, float], list[Row]]] = {
    "lookup": Teacher.lookup_batch,
    "recall": Teacher.recall_batch,
    "exam": Teacher.exam_batch,
    "letters": Teacher.letters_batch,
}
