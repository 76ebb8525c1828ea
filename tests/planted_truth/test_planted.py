"""Planted neurons act as their kind says, by plain forward passes; the model is not changed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.planted_truth.neuron_kinds import (
    ALIKE,
    CORRECT,
    INCORRECT,
    POSITION,
    SILENT,
    PlantedModel,
)
from benchmarks.planted_truth.plant import plant
from benchmarks.planted_truth.wiring import fit_rows, recorded_inputs
from neuronllm_eval.errors import ModelError, UsageError
from neuronllm_eval.models.hooks import scale_neurons
from neuronllm_eval.prompts import Prompt
from tests.fixtures.planted_models import STRENGTH, biased, embedded, fitting_prompts, skilled
from tests.fixtures.tiny_models import tiny_model

N_PROMPTS = 32


def asked() -> list[Prompt]:
    """Prompts that nothing was fitted to."""
    return [prompt for question in embedded()[2] for prompt in question.prompts][:N_PROMPTS]


@torch.no_grad()
def letters(model: PlantedModel, without: tuple[int, int] | None = None) -> Tensor:
    """[prompts, letters] log-likelihoods at the scored position, with a neuron at 0 or none."""
    scale = torch.ones(model.layers.shape)
    if without is not None:
        scale[without] = 0
    rows = []
    with scale_neurons(model.layers.modules, scale):
        for prompt in asked():
            last = model.model(input_ids=torch.tensor([prompt.context])).logits[0, -1]
            rows.append(last.log_softmax(-1)[[option[0] for option in prompt.options]])
    return torch.stack(rows)


def against_others(loglikelihoods: Tensor, letter: int) -> Tensor:
    others = [place for place in range(loglikelihoods.shape[-1]) if place != letter]
    return loglikelihoods[:, letter] - loglikelihoods[:, others].mean(-1)


def odds(loglikelihoods: Tensor) -> Tensor:
    said = loglikelihoods.double().exp().sum(-1)
    return (said / (1 - said)).log()


def test_neurons_push_their_letters_where_they_are_right_and_hardly_elsewhere():
    golds = torch.tensor([prompt.gold for prompt in asked()])
    whole = letters(skilled())
    for kind, step in ((CORRECT, 0), (INCORRECT, 1)):
        for neuron in skilled().of_kind(kind)[2:6]:
            pushed = (neuron.letter + step) % 4
            change = against_others(whole, pushed) - against_others(
                letters(skilled(), neuron.location), pushed
            )
            there, elsewhere = (change[golds == neuron.letter], change[golds != neuron.letter])
            assert there.mean() > 0.5 * STRENGTH
            assert elsewhere.mean() < 0.3 * there.mean()


def test_neurons_push_all_letters_alike():
    whole = letters(skilled())
    signs = []
    for neuron in skilled().of_kind(ALIKE)[:2]:
        without = letters(skilled(), neuron.location)
        assert (odds(whole) - odds(without)).abs().mean() > 0.7 * STRENGTH
        contrast = whole.log_softmax(-1) - without.log_softmax(-1)
        assert contrast.abs().max() < 0.2 * STRENGTH
        signs.append(float((odds(whole) - odds(without)).mean().sign()))
    assert signs == [1, -1]


def test_silent_neurons_are_the_loudest_and_change_nothing():
    loudness = [
        each.abs().mean(0)
        for each in recorded_inputs(skilled().model, skilled().layers.modules, asked())
    ]
    silent = skilled().of_kind(SILENT)
    own = [float(loudness[neuron.layer][neuron.index]) for neuron in silent]
    for neuron in silent:
        loudness[neuron.layer][neuron.index] = 0
    assert min(own) > max(float(each.max()) for each in loudness)
    assert torch.equal(letters(skilled()), letters(skilled(), silent[-1].location))


def test_position_neurons_push_their_letter_whatever_is_asked():
    whole = letters(biased())
    for neuron in biased().of_kind(POSITION)[1:3]:
        without = letters(biased(), neuron.location)
        change = against_others(whole, neuron.letter) - against_others(without, neuron.letter)
        assert change.min() > 0.5 * STRENGTH


def test_effects_are_as_asked_for():
    for neuron in (*skilled().neurons, *biased().neurons):
        assert neuron.effect == pytest.approx(neuron.sign * STRENGTH, abs=0.05 * STRENGTH)


def test_the_model_stays_as_it_is_and_the_seed_chooses_the_places():
    model = embedded()[0].lm.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = (
        plant(model, fitting_prompts()[:40], (3,), (SILENT,), STRENGTH, seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert first.neurons == again.neurons
    assert all(
        torch.equal(value, again.model.state_dict()[name])
        for name, value in first.model.state_dict().items()
    )
    assert {n.location for n in first.neurons} != {n.location for n in other.neurons}


def test_detectors_see_the_letter_and_are_blind_to_what_is_written():
    generator = torch.Generator().manual_seed(0)
    gold = torch.arange(120) % 3
    inputs = 0.1 * torch.randn(120, 8, generator=generator)
    inputs[:, 0] += 1  # the same for all
    inputs[torch.arange(120), 1 + gold] += 1
    inputs[torch.arange(120), 4 + gold] += 5  # tells the letter best, and is written
    written = torch.eye(8)[4:7]
    rows = fit_rows(inputs, gold, 3, written)
    assert torch.equal((inputs @ rows.letters.T).argmax(-1), gold)
    assert (rows.letters @ written.T).abs().max() < 1e-5
    assert (inputs @ rows.always - 1).abs().max() < 0.5


def refused(prompts: Sequence[Prompt], layers: tuple[int, ...], strength: float) -> str:
    with pytest.raises(UsageError) as error:
        plant(embedded()[0].lm.model, prompts, layers, (CORRECT,), strength, 0)
    return str(error.value)


def test_what_cannot_be_planted_is_refused():
    prompts = fitting_prompts()
    assert "layers are [4]" in refused(prompts, (4,), 1.0)
    assert "strength is 0" in refused(prompts, (3,), 0.0)
    assert "1 are gold" in refused([each for each in prompts if each.gold == 2], (3,), 1.0)
    with pytest.raises(ModelError, match="the parts of a Llama"):
        plant(tiny_model("gpt2"), prompts, (1,), (CORRECT,), 1.0, 0)
