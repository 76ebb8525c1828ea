"""The cost of identification and validation, in stock passes of the same requests.

    python -m benchmarks.engine_cost
    python -m benchmarks.engine_cost --option_tokens 5 --tokens 150 --layers 12
    python -m benchmarks.engine_cost --profile

Attribution of every neuron with Gauss-Lobatto nodes (5 are the default; 3 are Simpson's rule), and
all conditions of a validation run in one pass, for prompts of several lengths and models of several
depths; `workload` defines a stock pass. "Nothing saved" computes every token, row and logit; "one
step" is gradient times activation. With options of several tokens, random ones for each question,
a stock pass reads the context once for every option.
Long prompts of deep models have fewer questions, so that the grid ends within the hour; the cost
of what prompts share is then spread over fewer of them, which makes those rows a little slower.

`--profile` shows where the time of an attribution goes (`profiling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tqdm import tqdm

from benchmarks import profiling
from benchmarks.workload import (
    N_PROXIES,
    Run,
    build_model,
    in_turn,
    make_prompts,
    parser,
    random_scales,
    score,
    setting,
    stock_model,
)
from neuronllm_eval.engine.fan_out import Savings
from neuronllm_eval.formats.markdown import markdown_table

# Tokens x layers x questions that one point of the grid may have, and the fewest questions.
MOST_WORK, FEWEST = 40_000, 2


def how_many_questions(n_tokens: int, n_layers: int, most: int) -> int:
    """How many questions a point of the grid has."""
    return min(most, max(FEWEST, MOST_WORK // (n_tokens * n_layers)))


def measure(
    n_layers: int, n_tokens: int, n_questions: int, batch_size: int, repeats: int,
    nodes: Sequence[int], conditions: Sequence[int], option_tokens: int = 1,
    width: int = 512, ffn: int = 1376,
) -> list[list[str]]:  # fmt: skip
    """Rows of the table for one model and length of prompts.

    Args:
        n_layers: of the model.
        n_tokens: of a prompt.
        n_questions: each has several prompts.
        batch_size: prompts that go through the model together.
        repeats: medians of so many.
        nodes: numbers of Gauss-Lobatto nodes; the first also with nothing saved.
        conditions: numbers of conditions.
        option_tokens: of each of the options.
        width: of the model.
        ffn: neurons of a layer.
    """
    model = build_model(n_layers, width=width, ffn=ffn)
    lm = stock_model(model, batch_size)
    prompts = make_prompts(n_tokens, n_questions, option_tokens)
    run, plain = Run(model, prompts, batch_size), Run(model, prompts, batch_size, Savings.NONE)
    actions: dict[str, Callable[[], object]] = {"stock pass": partial(score, lm, prompts)}
    for count in nodes:
        actions[f"attribution, {count} Gauss-Lobatto nodes"] = partial(run.attribution, count)
    actions["attribution, one step"] = run.one_step
    for count in nodes[:1] if option_tokens == 1 else ():
        name = f"attribution, {count} Gauss-Lobatto nodes, nothing saved"
        actions[name] = partial(plain.attribution, count)
    for count in conditions:
        scales = random_scales(run.layers, count)
        actions[f"{count} conditions"] = partial(run.conditions, scales)
    times = in_turn(actions, repeats)
    base = times["stock pass"]
    return [
        [
            str(n_layers),
            str(n_tokens),
            str(n_questions),
            name,
            f"{1e3 * each / len(prompts):.0f}",
            f"{each / base:.2f}",
        ]
        for name, each in times.items()
    ]


def main() -> None:
    """Print the table, or the profile."""
    flags = parser(__doc__)
    flags.add_argument("--tokens", type=int, nargs="+", default=[60, 150, 400, 1000])
    flags.add_argument("--layers", type=int, nargs="+", default=[4, 12, 24])
    flags.add_argument("--nodes", type=int, nargs="+", default=[3, 5])
    flags.add_argument("--conditions", type=int, nargs="*", default=[1, 5, 20, 100])
    flags.add_argument("--option_tokens", type=int, default=1)
    flags.add_argument("--width", type=int, default=512)
    flags.add_argument("--ffn", type=int, default=1376, help="neurons of a layer")
    flags.add_argument("--questions", type=int, default=8, help="at the most")
    flags.add_argument("--profile", action="store_true", help="where the time goes instead")
    options = flags.parse_args()
    if options.profile:
        flags.set_defaults(tokens=[150, 400], layers=[12], nodes=[5])
        options = flags.parse_args()
    print(f"{setting(options)}; {N_PROXIES} prompts per question, {options.option_tokens} tokens "
          f"per option, width {options.width}, FFN {options.ffn}")  # fmt: skip
    grid = [
        (n_layers, n_tokens, how_many_questions(n_tokens, n_layers, options.questions))
        for n_layers in options.layers
        for n_tokens in options.tokens
    ]
    if options.profile:
        for n_layers, n_tokens, n_questions in grid:
            prompts = make_prompts(n_tokens, n_questions)
            run = Run(build_model(n_layers), prompts, options.batch_size)
            for count in options.nodes:
                print(f"\n{n_layers} layers, {n_tokens} tokens, {n_questions} questions, "
                      f"attribution with {count} Gauss-Lobatto nodes\n")  # fmt: skip
                print(profiling.report(run, count, options.repeats))
        return
    rows = [
        row
        for point in tqdm(grid, desc="points")
        for row in measure(
            *point,
            options.batch_size,
            options.repeats,
            options.nodes,
            options.conditions,
            options.option_tokens,
            options.width,
            options.ffn,
        )
    ]
    headers = ["layers", "tokens", "questions", "what", "ms per prompt", "stock passes"]
    print(markdown_table(headers, rows))


if __name__ == "__main__":
    main()
