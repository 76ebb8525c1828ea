"""What attributing every neuron costs, in units of one plain forward pass over the prompt.

    python -m benchmarks.attribution_speed

A random Llama of 12 layers, width 512, FFN 1376 and 8,000 tokens, in fp32 on one thread. The
engines and the plain pass take turns; medians are shown. The replay engine is timed on the same
prompt, once, since it takes minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from neuronllm_eval.architectures import find_ffn_layers
from neuronllm_eval.attribution import Attribution, Quadrature, attribute
from neuronllm_eval.fan_out import FanOutEngine
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.replay import ReplayEngine
from neuronllm_eval.report import markdown_table


def build_model(n_layers: int = 12) -> LlamaForCausalLM:
    """The benchmark's random model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval()


def random_prompt(n_tokens: int) -> Prompt:
    """A prompt of `n_tokens` with four one-token options."""
    generator = torch.Generator().manual_seed(n_tokens)
    ids = torch.randint(10, 8000, (n_tokens,), generator=generator)
    return Prompt(0, tuple(ids.tolist()), ((1,), (2,), (3,), (4,)), 0)


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(model: LlamaForCausalLM, n_tokens: int, repeats: int, replay: bool) -> list[list[str]]:
    """Rows of the table for one prompt length."""
    layers = find_ffn_layers(model)
    prompt = random_prompt(n_tokens)
    ids = torch.tensor([prompt.context])
    fan_out = FanOutEngine(model, layers)

    def plain() -> None:
        with torch.no_grad():
            model(ids)

    def attribution(engine: FanOutEngine | ReplayEngine, rule: Quadrature) -> list[Attribution]:
        return attribute(engine, [prompt], rule)

    rules = [Quadrature("gauss_legendre", 4), Quadrature("right_riemann", 16)]
    actions: dict[str, Callable[[], object]] = {"plain": plain}
    for rule in rules:
        actions[f"{rule.n_steps} nodes of {rule.name}"] = lambda rule=rule: attribution(
            fan_out, rule
        )
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()  # warm up
    for _ in range(repeats):
        for name, action in actions.items():  # interleaved, so that drift hits all alike
            times[name].append(seconds(action))
    base = statistics.median(times["plain"])
    rows = [[str(n_tokens), "one plain forward pass", f"{base * 1e3:.0f}", "1.0", ""]]
    for rule in rules:
        name = f"{rule.n_steps} nodes of {rule.name}"
        median = statistics.median(times[name])
        gap = float(attribution(fan_out, rule)[0].completeness_gap.max())
        row = [f"{median * 1e3:.0f}", f"{median / base:.1f}", f"{gap:.1e}"]
        rows.append([str(n_tokens), f"fan-out, {name}", *row])
    for rule in rules if replay else []:
        slow = seconds(lambda rule=rule: attribution(ReplayEngine(model, layers), rule))
        row = [f"{slow * 1e3:.0f}", f"{slow / base:.0f}", ""]
        rows.append([str(n_tokens), f"replay, {rule.n_steps} nodes of {rule.name}", *row])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[150, 400])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no_replay", action="store_true", help="leave out the replay engine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build_model(options.layers)
    rows = [
        row
        for n_tokens in options.tokens
        for row in measure(model, n_tokens, options.repeats, not options.no_replay)
    ]
    headers = ["tokens", "what", "ms", "plain passes", "completeness gap (log-nats)"]
    print(f"torch {torch.__version__}, {options.threads} thread(s), fp32, medians of "
          f"{options.repeats}; replay timed once")  # fmt: skip
    print(markdown_table(headers, rows))


if __name__ == "__main__":
    main()
