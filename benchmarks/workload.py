"""The workload of the benchmarks: a random model, prompts like those of a run, timed actions.

The model is a Llama of width 512, FFN 1,376 and vocabulary 8,000 with random weights, in fp32.
Each question has three prompts; all prompts of a run share a beginning (role line, demonstration),
the proxies of a question also their stem. A *stock pass* is lm-eval's own scoring (`--model hf`)
of the same prompts and options at the same batch size, without loading the model.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuronllm_eval.attribution.integrated_gradients import (
    Attribution,
    Attributions,
    attribute,
    attribute_all,
)
from neuronllm_eval.attribution.methods import GradXAct
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.fan_out import FanOutEngine, Savings
from neuronllm_eval.engine.interface import OptionScores
from neuronllm_eval.engine.pass_size import rows_per_prompt, tree_size
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models.ffn_layers import FFNLayers, find_ffn_layers
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet, Provenance
from neuronllm_eval.prompts import SCORED, Prompt

N_PROXIES = 3
VOCABULARY = 8000
# Shares of a prompt's tokens: what all prompts share, and what a question's proxies share besides.
SHARED, STEM = 0.40, 0.18
N_OPTIONS = 4
# Tokens 0 to 9 are the letters' and the tokenizer's; random text has the others.
FIRST_WORD = 10
MOST_NODES = 16  # of path integrals, for which passes have room
SUPPRESSED = 0.02  # of all neurons, in random masks


def build_model(
    n_layers: int = 12, vocabulary: int = VOCABULARY, width: int = 512, ffn: int = 1376
) -> LlamaForCausalLM:
    """The benchmarks' random model; with heads of width 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=n_layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def stock_model(model: LlamaForCausalLM, batch_size: int) -> HFLM:
    """`--model hf` around a model."""
    return HFLM(**_harness_arguments(model, batch_size))


def masked_model(
    model: LlamaForCausalLM, batch_size: int, positions: str | None = None
) -> NeuronMaskedLM:
    """`--model neuronllm` around a model: unmasked, or with random neurons suppressed.

    Args:
        model: what it masks.
        batch_size: of the harness.
        positions: `scored` or `all`; None for unmasked.
    """
    given = _harness_arguments(model, batch_size)
    if positions is None:
        return NeuronMaskedLM(**given, positions="all")
    neurons = random_neurons(find_ffn_layers(model))
    return NeuronMaskedLM(**given, neurons=neurons, condition="suppress_good", positions=positions)


def _harness_arguments(model: LlamaForCausalLM, batch_size: int) -> dict[str, Any]:
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", pad_token="w0")
    return {"pretrained": model, "tokenizer": fast, "batch_size": batch_size, "device": "cpu"}


def make_prompts(n_tokens: int, n_questions: int, option_tokens: int = 1) -> list[Prompt]:
    """The proxies of random questions, those of a question side by side.

    Args:
        n_tokens: length of each context.
        n_questions: each has `N_PROXIES` prompts.
        option_tokens: 1 for the same letters in every question, else random options of so many
            tokens, drawn for each question.
    """
    generator = torch.Generator().manual_seed(n_tokens)

    def draw(count: int) -> tuple[int, ...]:
        ids = torch.randint(FIRST_WORD, VOCABULARY, (count,), generator=generator)
        return tuple(ids.tolist())

    n_shared, n_stem = int(SHARED * n_tokens), int(STEM * n_tokens)
    shared = draw(n_shared)
    prompts = []
    for question in range(n_questions):
        stem = draw(n_stem)
        if option_tokens == 1:
            options = tuple((1 + option,) for option in range(N_OPTIONS))
        else:
            options = tuple(draw(option_tokens) for _ in range(N_OPTIONS))
        for proxy in range(N_PROXIES):
            context = (*shared, *stem, *draw(n_tokens - n_shared - n_stem))
            prompts.append(Prompt(question * N_PROXIES + proxy, context, options, proxy))
    return prompts


def random_neurons(layers: FFNLayers) -> NeuronSet:
    """As many good neurons as a random mask suppresses, and as many bad ones."""
    generator = torch.Generator().manual_seed(0)
    n_all = layers.n_layers * layers.width
    n_each = int(SUPPRESSED * n_all)
    places = torch.randperm(n_all, generator=generator)[: 2 * n_each].tolist()
    good, bad = (
        tuple(
            Neuron(place // layers.width, place % layers.width, sign * (n_each - rank))
            for rank, place in enumerate(chosen)
        )
        for sign, chosen in ((1.0, places[:n_each]), (-1.0, places[n_each:]))
    )
    fillings: dict[str, Any] = {"str": "random", "int": 1, "float | None": 0.0}
    provenance = {
        name: fillings[str(kind)]
        for name, kind in Provenance.__annotations__.items()
        if not hasattr(Provenance, name)  # which have defaults
    }
    provenance["positions"] = SCORED
    return NeuronSet(
        n_layers=layers.n_layers,
        width=layers.width,
        good=good,
        bad=bad,
        top_k=n_each,
        ambiguous="keep",
        provenance=Provenance(**provenance),
    )


def random_scales(layers: FFNLayers, n_conditions: int) -> torch.Tensor:
    """[conditions, layers, neurons] int8 masks that suppress `SUPPRESSED` of all neurons."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(n_conditions, *layers.shape, generator=generator) > SUPPRESSED
    return scales.to(torch.int8)


def score(lm: HFLM, prompts: Sequence[Prompt]) -> list[tuple[float, bool]]:
    """What `lm_eval` does with these prompts, tokenisation excluded.

    Returns:
        per prompt and option, log-likelihood in log-nats and whether it is greedy.
    """
    requests = [
        ((str(prompt.doc_id), str(option)), list(prompt.context), list(option))
        for prompt in prompts
        for option in prompt.options
    ]
    return lm._loglikelihood_tokens(requests, disable_tqdm=True)


@dataclass(frozen=True)
class Run:
    """What identification and validation compute for some prompts, in batches.

    Attributes:
        model: the model.
        prompts: of the whole run.
        batch_size: prompts that go through the model together.
        savings: of the engine; the default is what it takes for this model.
    """

    model: LlamaForCausalLM
    prompts: Sequence[Prompt]
    batch_size: int
    savings: Savings = Savings.LATE

    @property
    def layers(self) -> FFNLayers:
        """The model's down-projections."""
        return find_ffn_layers(self.model)

    def engine(self) -> FanOutEngine:
        """A new one for each call, so that shared prefixes are recomputed."""
        return FanOutEngine(
            self.model,
            self.layers,
            contexts=[prompt.context for prompt in self.prompts],
            savings=self.savings,
            rows_per_prompt=rows_per_prompt(max(map(tree_size, self.prompts)), MOST_NODES),
        )

    def attribution(self, n_nodes: int) -> list[Attribution]:
        """Attribution of all neurons with Gauss-Lobatto nodes, as users get it."""
        engine, rule = self.engine(), Quadrature("gauss_lobatto", n_nodes)
        return [each for batch in self._batches() for each in attribute(engine, batch, rule)]

    def one_step(self) -> list[Attributions]:
        """Gradient times activation of all neurons, as `--method gradxact` alone computes it."""
        engine, step = self.engine(), [GradXAct.quantity]
        return [
            each
            for batch in self._batches()
            for each in attribute_all(engine, batch, Quadrature(), step)
        ]

    def conditions(self, scales: torch.Tensor) -> list[OptionScores]:
        """Scores under conditions [conditions, layers, neurons]."""
        engine = self.engine()
        return [each for batch in self._batches() for each in engine.score(batch, scales)]

    def _batches(self) -> list[Sequence[Prompt]]:
        starts = range(0, len(self.prompts), self.batch_size)
        return [self.prompts[start : start + self.batch_size] for start in starts]


def quiet_harness() -> None:
    """No word of models that are handed over rather than named."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def in_turn(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each action; they take turns, so that drift hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()  # warm up
    for _ in range(repeats):
        for name, action in actions.items():
            times[name].append(seconds(action))
    return {name: statistics.median(found) for name, found in times.items()}


def seconds(action: Callable[[], object]) -> float:
    """Time of one call; of one thread the processor's, whoever else uses the machine."""
    start = now()
    action()
    return now() - start


def now() -> float:
    """Seconds on the clock that timings go by."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def parser(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The flags that all timings have."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--batch_size", type=int, default=12, help="prompts")
    made.add_argument("--repeats", type=int, default=repeats, help="medians of so many")
    made.add_argument("--threads", type=int, default=1)
    return made


def setting(options: argparse.Namespace) -> str:
    """How the figures of a table came about, for the line above it; sets the threads."""
    quiet_harness()
    torch.set_num_threads(options.threads)
    return (
        f"torch {torch.__version__}, {options.threads} thread(s), fp32, batch size "
        f"{options.batch_size}, medians of {options.repeats}, all in turn, "
        f"{'processor time' if options.threads == 1 else 'wall-clock time'}"
    )
