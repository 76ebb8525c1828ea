"""The shipped demo: its question files, and the folder of its model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from neuronllm_eval.demo import FAMILIES, MODEL_DIR, QUESTIONS_DIR, SPLITS, load_questions
from tools.train_demo.facts import KNOWLEDGE
from tools.train_demo.generators import draw
from tools.train_demo.keys import TRAINING, Question, home
from tools.train_demo.questions import (
    INSTRUCTION,
    LETTERS,
    draw_split,
    format_question,
    main,
    make_docs,
)
from tools.train_demo.words import NEGATIVE, NEUTRAL, POSITIVE, TOPIC_WORDS

EXAM_SPLITS = ("selection", "validation")


def normalised(doc: dict[str, Any]) -> str:
    """A question and its options without case, punctuation or order of options."""
    words = re.findall(r"[a-z0-9]+", doc["question"].lower())
    return " ".join([*words, "|", *sorted(choice.lower() for choice in doc["choices"])])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_docs_are_well_formed(family: str, split: str) -> None:
    docs = load_questions(family, split)
    assert len(docs) == {"selection": 600, "validation": 600, "demonstration": 8}[split]
    assert len({doc["id"] for doc in docs}) == len(docs)
    for doc in docs:
        assert sorted(doc) == ["answer", "choices", "id", "question", "subfamily"]
        assert doc["id"].startswith(f"{family}-{split}-")
        assert len(set(doc["choices"])) == 4
        assert all(isinstance(choice, str) and choice for choice in doc["choices"])
        assert doc["answer"] in range(4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_letter_is_right_equally_often(family: str, split: str) -> None:
    docs = load_questions(family, split)
    letters = Counter(doc["answer"] for doc in docs)
    assert set(letters.values()) == {len(docs) // 4}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", EXAM_SPLITS)
def test_any_prefix_is_a_fair_sample(family: str, split: str) -> None:
    letters = Counter(doc["answer"] for doc in load_questions(family, split)[:200])
    # Hypergeometric, 200 of 600: mean 50, standard deviation 5; four of them either way.
    assert all(30 <= letters[answer] <= 70 for answer in range(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_question_is_asked_twice(family: str) -> None:
    texts = [normalised(doc) for split in SPLITS for doc in load_questions(family, split)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_key(family: str) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for question in draw_split(family, split):
            assert question.keys
            for key in question.keys:
                assert seen.setdefault(key, split) == split
                assert home(family, key) == split


def _key_from_text(family: str, doc: dict[str, Any]) -> frozenset[str]:
    """The content of a question read from its text alone, not from the generator."""
    words = re.findall(r"\w+", doc["question"])
    if family == "knowledge":
        pairs = KNOWLEDGE[doc["subfamily"]].pairs
        gold = doc["choices"][doc["answer"]]
        (subject,) = {word for word in words if pairs.get(word) == gold}
        fact = sorted((subject, gold)) if doc["subfamily"] == "opposite" else [subject]
        return frozenset({f"{doc['subfamily']} {fact}"})
    if family == "arithmetic":
        numbers = [int(word) for word in words if word.isdigit()]
        numbers = numbers or [int(choice) for choice in doc["choices"]]
        return frozenset({f"{doc['subfamily']} {sorted(numbers)}"})
    if family == "sentiment":
        adjectives = {*POSITIVE, *NEGATIVE, *NEUTRAL}
        review = re.split(r"[?] ", doc["question"])[1].lower()
        clauses = re.split(r", and |, but |; also, | and ", review)
        parts = sorted(
            f"{word}/{'negated' if re.search('not|never', clause) else 'plain'}"
            for clause in clauses
            for word in re.findall(r"\w+", clause)
            if word in adjectives
        )
        return frozenset({"+".join(parts)})
    members = {word for word in words if word in TOPIC_WORDS[doc["choices"][doc["answer"]]]}
    return frozenset(f"{a} {b}" for a in members for b in members if a < b)


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_share_no_content_that_can_be_read_from_the_text(family: str) -> None:
    contents = {
        split: {
            part for doc in load_questions(family, split) for part in _key_from_text(family, doc)
        }
        for split in SPLITS
    }
    assert all(contents.values())
    assert not contents["selection"] & contents["validation"]
    assert not contents["demonstration"] & (contents["selection"] | contents["validation"])


@pytest.mark.parametrize("family", ["arithmetic", "sentiment", "topic"])
def test_training_draws_none_of_the_shipped_keys(family: str) -> None:
    import random

    shipped = {key for split in SPLITS for q in draw_split(family, split) for key in q.keys}
    rng = random.Random(1)
    drawn: list[Question] = [draw(family, TRAINING, rng) for _ in range(500)]
    assert not shipped & {key for question in drawn for key in question.keys}


def test_training_never_asks_a_fact_with_the_options_of_a_shipped_question() -> None:
    pytest.importorskip("torch")
    from tools.train_demo.curriculum import Teacher
    from tools.train_demo.tokenizer import build_tokenizer

    teacher = Teacher(build_tokenizer(), "test")
    shipped = {(q.keys, q.options) for split in EXAM_SPLITS for q in draw_split("knowledge", split)}
    asked = [teacher.exam_question("knowledge") for _ in range(2000)]
    assert not shipped & {(question.keys, question.options) for question in asked}


def _answer_by_arithmetic(question: str, choices: list[str]) -> int:
    numbers = [int(number) for number in re.findall(r"\d+", question)]
    if "plus" in question or "sum" in question:
        return sum(numbers)
    if "minus" in question:
        return numbers[0] - numbers[1]
    if question.startswith("Take"):
        return numbers[1] - numbers[0]
    if "next" in question:
        (step,) = {later - earlier for earlier, later in pairwise(numbers)}
        return numbers[-1] + step
    values = [int(choice) for choice in choices]
    assert "largest" in question or "smallest" in question
    return max(values) if "largest" in question else min(values)


@pytest.mark.parametrize("split", SPLITS)
def test_arithmetic_answers_are_right(split: str) -> None:
    for doc in load_questions("arithmetic", split):
        right = _answer_by_arithmetic(doc["question"], doc["choices"])
        assert doc["choices"][doc["answer"]] == str(right), doc


@pytest.mark.parametrize("split", SPLITS)
def test_sentiment_answers_are_right(split: str) -> None:
    """Each clause's feeling read from its adjective, turned round by a negation."""
    for doc in load_questions("sentiment", split):
        feelings = set()
        (parts,) = _key_from_text("sentiment", doc)
        for part in parts.split("+"):
            word, form = part.split("/")
            feeling = 0 if word in NEUTRAL else (1 if word in POSITIVE else -1)
            feelings.add(-feeling if form == "negated" else feeling)
        label = {
            frozenset({1}): "positive",
            frozenset({1, 0}): "positive",
            frozenset({-1}): "negative",
            frozenset({-1, 0}): "negative",
            frozenset({0}): "neutral",
            frozenset({1, -1}): "mixed",
        }[frozenset(feelings)]
        assert doc["choices"][doc["answer"]] == label, doc


@pytest.mark.parametrize("split", SPLITS)
def test_topic_answers_have_the_majority_of_the_words(split: str) -> None:
    for doc in load_questions("topic", split):
        words = set(re.findall(r"\w+", doc["question"]))
        counts = [len(words & set(TOPIC_WORDS[choice])) for choice in doc["choices"]]
        assert counts[doc["answer"]] >= 2
        assert sorted(counts)[-2] <= 1


def test_files_are_what_the_generator_yields(tmp_path: Path) -> None:
    main(["--output_path", str(tmp_path)])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"{family}.{split}.jsonl" for family in FAMILIES for split in SPLITS)
    for name in names:
        assert (tmp_path / name).read_bytes() == (QUESTIONS_DIR / name).read_bytes(), name


def test_docs_do_not_depend_on_what_was_generated_before() -> None:
    first = make_docs("topic", "demonstration")
    make_docs("arithmetic", "demonstration")
    assert json.dumps(make_docs("topic", "demonstration")) == json.dumps(first)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no family 'geography'; the families are knowledge"):
        load_questions("geography", "validation")
    with pytest.raises(ValueError, match="no split 'test'; the splits are selection"):
        load_questions("topic", "test")


def test_prompt_format() -> None:
    assert format_question("Which?", ["w", "x", "y", "z"]) == (
        "Question: Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )


def test_importing_the_demo_does_not_import_torch() -> None:
    code = "import sys, neuronllm_eval.demo as d; d.load_questions('topic', 'validation'); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_folder_is_small_and_loads() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 8_000_000
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 512
    assert model.config.tie_word_embeddings
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert len(tokenizer) == model.config.vocab_size
    for family in FAMILIES:
        doc = load_questions(family, "demonstration")[0]
        prompt = format_question(doc["question"], doc["choices"])
        assert len(tokenizer(f"{INSTRUCTION}\n\n{prompt}")["input_ids"]) <= 128


def test_letters_are_single_tokens_and_nothing_is_added() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    context = format_question("Which?", ["w", "x", "y", "z"])
    ids = tokenizer(context)["input_ids"]
    assert tokenizer.decode(ids) == context
    assert ids == tokenizer(context, add_special_tokens=False)["input_ids"]
    for letter in LETTERS:
        (token,) = tokenizer(f" {letter}")["input_ids"]
        assert tokenizer(f"{context} {letter}")["input_ids"] == [*ids, token]
    assert None not in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_every_answer_is_one_token() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    choices = {
        choice
        for family in FAMILIES
        for split in SPLITS
        for doc in load_questions(family, split)
        for choice in doc["choices"]
    }
    assert [choice for choice in choices if len(tokenizer(f" {choice}")["input_ids"]) != 1] == []
