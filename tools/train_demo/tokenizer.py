"""The demo model's tokenizer: byte-level BPE in which every answer is one token.

One token per word keeps a one-shot prompt at about a hundred tokens and lets a single attention
head compare an option with the word it is looking for. Nothing is added on encoding, so that a
context and its continuation can be tokenised apart or together with the same result.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.train_demo import words as lists
from tools.train_demo.facts import KNOWLEDGE
from tools.train_demo.generators import GENERATORS, LARGEST_NUMBER, SENTIMENTS
from tools.train_demo.questions import FAMILIES, LETTERS
from tools.train_demo.wordings import INSTRUCTIONS, exam_prompt, statement

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def content_words() -> list[str]:
    """Every word that carries content: subjects, answers, adjectives, topic words, numbers."""
    words: set[str] = set(lists.POSITIVE + lists.NEGATIVE + lists.NEUTRAL + lists.ASPECTS)
    words.update(SENTIMENTS)
    for kind in KNOWLEDGE.values():
        words.update(kind.pairs, kind.pairs.values())
    for topic, members in lists.TOPIC_WORDS.items():
        words.update([topic, *members])
    words.update(str(number) for number in range(LARGEST_NUMBER + 1))
    return sorted(words)


def _corpus(n_rounds: int = 3000) -> Iterator[str]:
    """Text in the proportions that make BPE merge all content words and most template words."""
    rng = random.Random("tokenizer")
    for index in range(n_rounds):
        for family in FAMILIES:
            question = GENERATORS[family](rng)
            choices = [question.gold, *question.distractors]
            yield exam_prompt(INSTRUCTIONS[index % len(INSTRUCTIONS)], [(question.text, choices)])
        yield statement(rng)
    for word in content_words():
        yield from [f" {word}"] * 50
    for letter in LETTERS:
        yield from [f" {letter}"] * 50


def build_tokenizer(vocab_size: int = 4000) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same bytes every time.

    Raises:
        ValueError: if a content word or a letter came out as several tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=8,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=512
    )
    for word in [*content_words(), *LETTERS]:
        pieces = tokenizer.tokenize(f" {word}")
        if len(pieces) != 1:
            raise ValueError(f"{word!r} is {len(pieces)} tokens, expected one: raise vocab_size")
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text; past the wrapper, which would take longer than making the row."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def token_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The one token of a word with a space before it."""
    (single,) = encode(tokenizer, f" {word}")
    return single
