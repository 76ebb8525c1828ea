"""The cost of evaluation through `--model neuronllm`, in stock passes of the same requests.

    python -m benchmarks.evaluation_cost

Unmasked, and with 2% of all neurons suppressed at all positions or at the scored ones only; with
options of one token (letters) and of several. `workload` defines a stock pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.workload import (
    N_OPTIONS,
    N_PROXIES,
    build_model,
    in_turn,
    make_prompts,
    masked_model,
    parser,
    score,
    setting,
    stock_model,
)
from neuronllm_eval.formats.markdown import markdown_table

# Every option of several tokens is a sequence of its own to lm-eval, so a quarter of the questions
# takes as long.
SEVERAL, SHARE_OF_QUESTIONS = 8, N_OPTIONS


def measure(
    n_layers: int, n_tokens: int, option_tokens: int, n_questions: int, batch_size: int,
    repeats: int,
) -> list[list[str]]:  # fmt: skip
    """Rows of the table for one model, length of prompts and length of options."""
    model = build_model(n_layers)
    prompts = make_prompts(n_tokens, n_questions, option_tokens)
    lms = {
        "stock pass": stock_model(model, batch_size),
        "unmasked": masked_model(model, batch_size),
        "masked, positions=all": masked_model(model, batch_size, "all"),
        "masked, positions=scored": masked_model(model, batch_size, "scored"),
    }
    actions: dict[str, Callable[[], object]] = {
        name: partial(score, lm, prompts) for name, lm in lms.items()
    }
    times = in_turn(actions, repeats)
    base = times["stock pass"]
    return [
        [
            str(n_layers),
            str(n_tokens),
            str(option_tokens),
            str(n_questions),
            name,
            f"{1e3 * each / len(prompts):.0f}",
            f"{each / base:.3f}",
        ]
        for name, each in times.items()
    ]


def main() -> None:
    """Print the table."""
    flags = parser(__doc__)
    flags.add_argument("--tokens", type=int, nargs="+", default=[150, 400])
    flags.add_argument("--layers", type=int, nargs="+", default=[12])
    flags.add_argument("--option_tokens", type=int, nargs="+", default=[1, SEVERAL])
    flags.add_argument("--questions", type=int, default=8, help="a quarter with longer options")
    options = flags.parse_args()
    print(f"{setting(options)}; {N_PROXIES} prompts per question, {N_OPTIONS} options")
    rows = [
        row
        for n_layers in options.layers
        for n_tokens in options.tokens
        for count in options.option_tokens
        for row in measure(
            n_layers, n_tokens, count,
            options.questions if count == 1 else max(1, options.questions // SHARE_OF_QUESTIONS),
            options.batch_size, options.repeats,
        )
    ]  # fmt: skip
    headers = ["layers", "tokens", "tokens per option", "questions", "what", "ms per prompt"]
    print(markdown_table([*headers, "stock passes"], rows))


if __name__ == "__main__":
    main()
