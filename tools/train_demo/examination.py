"""The accuracy of a model on the shipped questions, with the prompts of the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from neuronllm_eval.demo.shipped import load_questions
from tools.train_demo.questions import INSTRUCTION, LETTERS, format_question
from tools.train_demo.tokenizer import encode, token_id


def one_shot_prompts(family: str, split: str, n_shifts: int) -> Iterator[tuple[str, int]]:
    """Prompt and gold letter of every question, its options shifted by 0 .. n_shifts - 1."""
    demonstration = load_questions(family, "demonstration")[0]
    shown = format_question(demonstration["question"], demonstration["choices"])
    prefix = f"{INSTRUCTION}\n\n{shown} {LETTERS[demonstration['answer']]}\n\n"
    for doc in load_questions(family, split):
        for shift in range(n_shifts):
            choices, answer = shifted(doc, shift)
            yield prefix + format_question(doc["question"], choices), answer


def shifted(doc: dict[str, Any], shift: int) -> tuple[list[str], int]:
    """The options of a doc, cyclically shifted by `shift`, and the gold index."""
    choices = doc["choices"][shift:] + doc["choices"][:shift]
    return choices, (doc["answer"] - shift) % len(choices)


@torch.no_grad()
def validation_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    family: str,
    *,
    n_shifts: int = 3,
    batch_size: int = 60,
) -> float:
    """Share of correct answers on the validation split, over questions and shifts."""
    letters = [token_id(tokenizer, letter) for letter in LETTERS]
    asked = [
        (encode(tokenizer, prompt), answer)
        for prompt, answer in one_shot_prompts(family, "validation", n_shifts)
    ]
    n_right = 0
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        length = max(len(ids) for ids, _ in part)
        # Padding on the right is harmless under causal attention: it is never attended to.
        rows = [ids + [0] * (length - len(ids)) for ids, _ in part]
        hidden = model.model(input_ids=torch.tensor(rows, device=model.device)).last_hidden_state
        last = torch.tensor([len(ids) - 1 for ids, _ in part], device=model.device)
        scores = model.lm_head(hidden[torch.arange(len(part), device=model.device), last])
        chosen = scores[:, letters].argmax(-1).tolist()
        n_right += sum(c == answer for c, (_, answer) in zip(chosen, part, strict=True))
    return n_right / len(asked)
