"""Planted truth: a copy of a trained model with neurons of known function (`neuron_kinds.py`).

1. The natural neurons of the chosen layers are scaled to `BACKGROUND`: they answer well, and where
   an answer is settled no planted neuron could move it. Then, from the first layer to the last:
2. The head is balanced (`even_head.py`): every letter is predicted as often as it is gold, and the
   rest of the vocabulary is as likely as the letters.
3. The inputs of the FFN at the scored position are recorded, and linear detectors fitted to them.
4. Quiet neurons are replaced: the gate gets the detector, the up-projection a row with a constant
   output, the down-projection a column that moves the letters as the kind requires.
5. Columns are scaled until each neuron, scaled from 0 to 1 alone, moves its letters by `strength`
   log-nats: for one letter, its log-likelihood minus the mean of the others', over the prompts
   where it is to be active; for `alike`, the log-odds of predicting a letter at all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.planted_truth.even_head import EvenHead, directions
from benchmarks.planted_truth.neuron_kinds import (
    ALIKE,
    CORRECT,
    INCORRECT,
    KINDS,
    SILENT,
    PlantedModel,
    PlantedNeuron,
)
from benchmarks.planted_truth.wiring import GatedModel, Wiring, fit_rows, recorded_inputs
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.prompts import Prompt

# Natural neurons of the planted layers keep this share of their output.
BACKGROUND = 0.03
# Share of a layer's neurons, the quietest, from which the replaced ones are drawn.
_QUIET = 0.25
_LOUDER = 1.5
_MOST_ROUNDS = 8  # of measuring and scaling
_MOST_FACTOR = 10.0  # in each of them
_CLOSE = 0.05  # of the strength, which is close enough
_MEASURED_PROMPTS = 80
_BATCH = 40


def plant(
    model: nn.Module,
    prompts: Sequence[Prompt],
    chosen: Sequence[int],
    kinds: Sequence[str],
    strength: float,
    seed: int,
) -> PlantedModel:
    """Plant neurons of every kind in a copy of a model.

    Args:
        model: a Hugging Face causal LM with gated FFNs and a linear head, trained on the task.
        prompts: to fit and to measure on; options of one token, the same for all prompts, each of
            them gold in some.
        chosen: layers to plant in.
        kinds: of `KINDS`.
        strength: change of its letters that each neuron is to cause, log-nats.
        seed: which of the quiet neurons are replaced.

    Raises:
        ModelError: the model has another structure, or the strength is not reached.
        UsageError: invalid prompts, layers or strength.
    """
    _require_shared_letters(_some(prompts))
    _require_shared_letters(prompts)
    model = copy.deepcopy(model)
    layers = find_ffn_layers(model)
    if strength <= 0 or not set(chosen) <= set(range(layers.n_layers)) or not chosen:
        raise UsageError(
            f"strength is {strength:g}, layers are {list(chosen)}",
            expected=f"a positive strength and layers from 0 to {layers.n_layers - 1}",
            remedy="choose others",
        )
    parts = GatedModel.of(model, layers)
    generator = torch.Generator().manual_seed(seed)
    even = EvenHead.of(parts, _some(prompts))
    neurons: tuple[PlantedNeuron, ...] = ()
    for layer in set(chosen):
        parts.scale_outputs(layer, BACKGROUND)
    for layer in sorted(set(chosen)):
        neurons += _wire_layer(parts, layer, kinds, even, prompts, generator)
        effects = _scale(parts, neurons, even, prompts, strength)
    planted = tuple(replace(n, effect=e) for n, e in zip(neurons, effects.tolist(), strict=True))
    return PlantedModel(model, layers, planted)


def _require_shared_letters(prompts: Sequence[Prompt]) -> None:
    """Raise UsageError unless the options are the same tokens, each of them gold somewhere."""
    options = {prompt.options for prompt in prompts}
    golds = {prompt.gold for prompt in prompts}
    first = prompts[0]
    if len(options) > 1 or not first.one_token_options or len(golds) < len(first.options):
        raise UsageError(
            f"{len(prompts)} prompts have {len(options)} sets of options, {len(golds)} are gold",
            expected="the same options of one token for all prompts, each gold in some of them",
            remedy="use an AQUA task, with a token for each letter",
        )


def _wire_layer(
    parts: GatedModel,
    layer: int,
    kinds: Sequence[str],
    even: EvenHead,
    prompts: Sequence[Prompt],
    generator: torch.Generator,
) -> tuple[PlantedNeuron, ...]:
    """Replace quiet neurons of a layer by one of each kind and letter, with unscaled columns."""
    inputs, *everything = recorded_inputs(parts.model, (parts.gates[layer], *parts.downs), prompts)
    gold = torch.tensor([prompt.gold for prompt in prompts])
    even.level(parts, _some(prompts))
    write = directions(parts, even, _some(prompts))
    n_letters = len(write.letters)
    written = torch.vstack((write.letters[1:], write.alike))
    norm = parts.norms[layer].weight.detach().float().cpu()
    rows = fit_rows(inputs, gold, n_letters, written * norm)
    loudest = max(float(each.abs().mean(0).max()) for each in everything)
    loudness = everything[layer].abs().mean(0)  # [neurons]
    quiet = (loudness * parts.downs[layer].weight.norm(dim=0).cpu()).argsort()
    quiet = quiet[: max(1, round(_QUIET * len(quiet)))]
    if len(quiet) < len(KINDS) * n_letters:
        raise ModelError(
            f"layer {layer} has {len(loudness)} neurons",
            expected=f"{round(len(KINDS) * n_letters / _QUIET)} or more",
            remedy="plant in a wider model",
        )
    places = quiet[torch.randperm(len(quiet), generator=generator)].tolist()
    planted = []
    if layer < parts.layers.n_layers - 1:  # later layers would undo it
        kinds = [kind for kind in kinds if kind != ALIKE]
    for kind in kinds:
        for letter in range(n_letters):
            own = PlantedNeuron(layer, places.pop(), kind, letter)
            detects = rows.letters[letter] if kind in (CORRECT, INCORRECT) else rows.always
            column = write.alike if kind == ALIKE else write.letters[own.pushes(n_letters)]
            loud = _LOUDER * loudest if kind == SILENT else loudness.mean()
            column = own.sign * column
            fires = gold == letter if kind in (CORRECT, INCORRECT) else torch.ones_like(gold).bool()
            wiring = Wiring(detects, rows.always, column)
            parts.wire(layer, own.index, wiring, inputs[fires], float(loud))
            planted.append(own)
    return tuple(planted)


def _scale(
    parts: GatedModel,
    neurons: tuple[PlantedNeuron, ...],
    even: EvenHead,
    prompts: Sequence[Prompt],
    strength: float,
) -> Tensor:
    """Scale output columns until every neuron has its target effect; these, [neurons]."""
    wanted = strength * torch.tensor([float(neuron.sign) for neuron in neurons])
    for _ in range(_MOST_ROUNDS):
        even.level(parts, _some(prompts))
        effects = _effects(parts, neurons, prompts)
        off = (effects - wanted).abs()
        if bool((off < _CLOSE * strength).all()):
            return effects
        factors = (wanted / effects).nan_to_num(1.0).clamp(1 / _MOST_FACTOR, _MOST_FACTOR)
        for neuron, factor in zip(neurons, factors.tolist(), strict=True):
            parts.scale_column(neuron.layer, neuron.index, factor)
    worst = int(off.argmax())
    raise ModelError(
        f"a neuron of kind {neurons[worst].kind} in layer {neurons[worst].layer} moves its letters "
        f"by {float(effects[worst]):.2f} log-nats",
        expected=f"about {float(wanted[worst]):g}",
        remedy="plant at a smaller strength (--strengths), or in later layers of a model "
        "that knows the answers",
    )


def _effects(
    parts: GatedModel, neurons: Sequence[PlantedNeuron], prompts: Sequence[Prompt]
) -> Tensor:
    """[neurons] change of its letters when scaled from 0 to 1, log-nats (see the module)."""
    some = _some(prompts)
    engine = build_engine(parts.model, parts.layers, some)
    scales = torch.ones(1 + len(neurons), *parts.layers.shape)
    for row, neuron in enumerate(neurons, start=1):
        scales[row, neuron.layer, neuron.index] = 0
    found = []
    for start in range(0, len(some), _BATCH):
        found += [
            each.loglikelihoods for each in engine.score(some[start : start + _BATCH], scales)
        ]
    values = torch.stack(found).double()  # [prompts, 1 + neurons, letters]
    gold = torch.tensor([prompt.gold for prompt in some])
    n_letters = values.shape[-1]
    said = values.logsumexp(-1)
    odds = said - torch.log(-torch.expm1(said))
    against_others = (values - values.mean(-1, keepdim=True)) * n_letters / (n_letters - 1)
    effects = []
    for row, neuron in enumerate(neurons, start=1):
        measure = odds if neuron.kind == ALIKE else against_others[..., neuron.pushes(n_letters)]
        change = measure[:, 0] - measure[:, row]
        effects.append(
            change[gold == neuron.letter if neuron.kind in (CORRECT, INCORRECT) else ...].mean()
        )
    return torch.stack(effects)


def _some(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Enough prompts for means."""
    return prompts[:: max(1, len(prompts) // _MEASURED_PROMPTS)]
