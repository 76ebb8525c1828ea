"""The cost of attributing every neuron with either engine, and the error of both integrals.

    python -m benchmarks.attribution_speed

Fan-out on the prompts of a run (`workload`), which share tokens, and on one of them alone, which
shares none; the replay engine, which runs full passes with gradients for each layer and node, with
the 16 right-Riemann steps of the paper. Replay is timed once, on the first prompt, since it takes
minutes; all else is timed in turn. Times include the completeness gap: its node at alpha = 0 is
part of Gauss-Lobatto and an extra pass for the right-Riemann rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import LlamaForCausalLM

from benchmarks.workload import (
    N_PROXIES,
    Run,
    build_model,
    in_turn,
    make_prompts,
    parser,
    seconds,
    setting,
)
from neuronllm_eval.attribution.integrated_gradients import Attribution, attribute
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.replay import ReplayEngine
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.models.ffn_layers import find_ffn_layers

PAPER = Quadrature("right_riemann", 16)
REPLAY = f"replay, {PAPER.n_steps} right-Riemann steps"


def measure(
    model: LlamaForCausalLM, n_tokens: int, n_questions: int, batch_size: int, repeats: int,
    nodes: Sequence[int], replay: bool,
) -> list[list[str]]:  # fmt: skip
    """Rows of the table for one length of prompts."""
    prompts = make_prompts(n_tokens, n_questions)
    run, alone = Run(model, prompts, batch_size), Run(model, prompts[:1], 1)
    ids = torch.tensor([prompts[0].context])
    found: dict[str, list[Attribution]] = {}

    def plain() -> None:
        with torch.no_grad():
            model(ids)

    def keep(name: str, action: Callable[[], list[Attribution]]) -> None:
        found[name] = action()

    actions: dict[str, Callable[[], object]] = {"plain forward pass": plain}
    for kind, each in (("in a run", run), ("one prompt alone", alone)):
        for count in nodes:
            name = f"fan-out, {count} Gauss-Lobatto nodes, {kind}"
            actions[name] = partial(keep, name, partial(each.attribution, count))
    times = in_turn(actions, repeats)
    per_prompt = {
        name: each / (len(prompts) if name.endswith("in a run") else 1)
        for name, each in times.items()
    }
    if replay:
        engine = ReplayEngine(model, find_ffn_layers(model))
        slow = partial(attribute, engine, prompts[:1], PAPER)
        per_prompt[REPLAY] = seconds(partial(keep, REPLAY, slow))
    base, slowest = per_prompt["plain forward pass"], per_prompt.get(REPLAY)
    return [
        [
            str(n_tokens),
            name,
            f"{1e3 * each:.0f}",
            f"{each / base:.2f}",
            f"{slowest / each:.0f}" if slowest else "",
            _gap(found[name]) if name in found else "",
        ]
        for name, each in per_prompt.items()
    ]


def _gap(found: Sequence[Attribution]) -> str:
    return f"{max(float(each.completeness_gap.max()) for each in found):.1e}"


def main() -> None:
    """Print the table."""
    flags = parser(__doc__)
    flags.add_argument("--tokens", type=int, nargs="+", default=[150, 400])
    flags.add_argument("--layers", type=int, default=12)
    flags.add_argument("--nodes", type=int, nargs="+", default=[3, 5])
    flags.add_argument("--questions", type=int, default=8)
    flags.add_argument("--no_replay", action="store_true", help="leave out the replay engine")
    options = flags.parse_args()
    print(f"{setting(options)}; {options.layers} layers, {options.questions} questions with "
          f"{N_PROXIES} prompts each; replay timed once")  # fmt: skip
    model = build_model(options.layers)
    rows = [
        row
        for n_tokens in options.tokens
        for row in measure(
            model, n_tokens, options.questions, options.batch_size, options.repeats,
            options.nodes, not options.no_replay,
        )
    ]  # fmt: skip
    headers = ["tokens", "what", "ms per prompt", "plain passes", "times faster than replay"]
    print(markdown_table([*headers, "largest completeness gap"], rows))


if __name__ == "__main__":
    main()
