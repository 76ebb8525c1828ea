"""The training loss, and a recorder of what the neurons do at the answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from tools.train_demo.curriculum import Batch


@dataclass
class NeuronRecord:
    """Where the next forward answers, and what the neurons did there, one entry per layer."""

    answer_at: Tensor  # [answers], positions in the flattened [rows * length] tokens
    neurons: list[Tensor] = field(default_factory=list)  # [answers, neurons]

    def restart(self, answer_at: Tensor) -> None:
        """Forget the last forward and tell where the next one will answer."""
        self.neurons.clear()
        self.answer_at = answer_at


@contextmanager
def recorded(model: LlamaForCausalLM, dropout: float = 0.0) -> Iterator[NeuronRecord]:
    """Record all layers' neurons at the answers while the block lasts.

    With `dropout`, that share of the neurons is silenced at the answers, and the others speak up
    for them, so that no single neuron becomes indispensable.
    """
    record = NeuronRecord(torch.zeros(0, dtype=torch.long, device=model.device))

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor] | None:
        neurons = arguments[0].flatten(0, 1)  # [rows * length, neurons]
        at_answers = neurons[record.answer_at]
        record.neurons.append(at_answers)
        if not dropout:
            return None
        dropped = F.dropout(at_answers, dropout)
        return (neurons.index_copy(0, record.answer_at, dropped).view_as(arguments[0]),)

    with ExitStack() as hooks:
        for block in model.model.layers:
            hooks.callback(block.mlp.down_proj.register_forward_pre_hook(keep).remove)
        yield record


def training_loss(
    model: LlamaForCausalLM, batch: Batch, record: NeuronRecord, sparse: float
) -> tuple[Tensor, float]:
    """The loss of one batch, and the share of its answers that are correct.

    `sparse` weighs a penalty on the neurons at the answers: with it, few of them carry a letter.
    """
    record.restart(batch.answer_at)
    with torch.autocast(batch.input_ids.device.type, torch.bfloat16):
        hidden = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1)  # [rows * length, width]
        answers = model.lm_head(hidden[batch.answer_at]).float()
        text = model.lm_head(hidden[batch.text_at]).float()
    loss = F.cross_entropy(answers, batch.answer_is) + F.cross_entropy(text, batch.text_is)
    if sparse:
        loss = loss + sparse * _neuron_output(model, record.neurons)
    right = (answers.argmax(-1) == batch.answer_is).float().mean()
    return loss, float(right)


def _neuron_output(model: LlamaForCausalLM, neurons: list[Tensor]) -> Tensor:
    """Sum over neurons of |activation| times output norm, averaged over answers, over all layers.

    Output norms are constants here: weights shall not shrink to please the penalty.
    """
    total = torch.zeros((), device=model.device)
    for block, at_answers in zip(model.model.layers, neurons, strict=True):
        norms = block.mlp.down_proj.weight.norm(dim=0).detach()  # [neurons]
        total = total + (at_answers.float().abs() * norms).sum(-1).mean()
    return total
