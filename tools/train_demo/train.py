"""Train the demo model from scratch, the same way every time.

    python -m tools.train_demo.train --output_path DIR

1. The tokenizer is built, the model is laid out (`structured_init`).
2. Three stages teach it to bind letters, to know things, and to sit exams (`curriculum`).
3. In the last stage the answer letters get new output vectors, attention is frozen, and only
   the feed-forward networks learn, under a penalty on the neurons at the answer: few neurons then
   carry the letter, which is what makes the model useful. Dropping some of them at
   random keeps any one from being indispensable. Without this stage the answer is settled before
   the last token, and no neuron matters where answers are scored.

Budgets are steps, and each stage has its own seed, so a run does not depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.train_demo.curriculum import BATCHES, Teacher, collate
from tools.train_demo.examination import validation_accuracy
from tools.train_demo.losses import recorded, training_loss
from tools.train_demo.questions import FAMILIES
from tools.train_demo.structured_init import (
    EMBEDDING_STD,
    redraw_letters,
    structure_attention,
    structure_embeddings,
)
from tools.train_demo.tokenizer import build_tokenizer, content_words

_FEED_FORWARD = (".mlp.", "post_attention_layernorm", "model.norm")


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum; the learning rate is constant, then falls to 2% of itself."""

    name: str
    n_steps: int
    learning_rate: float = 2e-3
    constant_share: float = 1.0
    sparse: float = 0.0  # weight of the penalty on neurons at answers
    dropout: float = 0.0  # share of neurons silenced at answers
    feed_forward_only: bool = False

    def rate(self, step: int) -> float:
        """Learning rate after a warm-up of 50 steps."""
        progress = step / self.n_steps
        fall = max(0.0, progress - self.constant_share) / max(1e-9, 1 - self.constant_share)
        return self.learning_rate * min(1.0, (step + 1) / 50) * max(0.02, 1 - fall)


STAGES: tuple[Stage, ...] = (
    Stage("lookup", 350),
    Stage("recall", 1200),
    Stage("exam", 3000, constant_share=0.4),
    Stage(
        "letters",
        800,
        constant_share=0.5,
        sparse=0.01,
        dropout=0.1,
        feed_forward_only=True,
    ),
)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained model of the demo's shape."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=EMBEDDING_STD,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # faster than sdpa at this width
    generator = torch.Generator().manual_seed(seed)
    structure_attention(model, generator)
    structure_embeddings(model, tokenizer, content_words())
    return model


def run_stage(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int
) -> None:
    """Train the model in place."""
    device = model.device
    for name, parameter in model.named_parameters():
        is_feed_forward = any(part in name for part in _FEED_FORWARD)
        parameter.requires_grad_(is_feed_forward or not stage.feed_forward_only)
    if stage.name == "letters":
        redraw_letters(model, tokenizer, torch.Generator().manual_seed(seed + 1))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learned, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    teacher = Teacher(tokenizer, f"{seed}/{stage.name}")
    torch.manual_seed(seed)
    model.train()
    smooth = 0.0
    steps = tqdm(range(stage.n_steps), desc=stage.name)
    with recorded(model, stage.dropout) as record, steps:
        for step in steps:
            rows = BATCHES[stage.name](teacher, step / stage.n_steps)
            loss, right = training_loss(model, collate(rows, device), record, stage.sparse)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.param_groups[0]["lr"] = stage.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            smooth = right if step == 0 else 0.98 * smooth + 0.02 * right
            if step % 20 == 0:
                steps.set_postfix(loss=f"{float(loss):.3f}", right=f"{smooth:.3f}")
    model.eval()


def train(
    seed: int, device: torch.device, after_stage: Callable[[str, LlamaForCausalLM], None]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """All stages in order; `after_stage` is called with each stage's name and the model."""
    random.seed(seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, seed).to(device)
    for stage in STAGES:
        run_stage(model, tokenizer, stage, seed)
        after_stage(stage.name, model)
    return model, tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: train, save in float32, print the accuracy per family."""
    parser = argparse.ArgumentParser(
        "python -m tools.train_demo.train", description="Train the demo model."
    )
    parser.add_argument("--output_path", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--stages_path", type=Path, help="also save the model after each stage here"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    def save_stage(name: str, model: LlamaForCausalLM) -> None:
        if arguments.stages_path:
            model.save_pretrained(arguments.stages_path / name)

    model, tokenizer = train(arguments.seed, torch.device(arguments.device), save_stage)
    model.save_pretrained(arguments.output_path)
    tokenizer.save_pretrained(arguments.output_path)
    for family in FAMILIES:
        print(f"{family}: {100 * validation_accuracy(model, tokenizer, family):.1f}%")


if __name__ == "__main__":
    main()
