"""The cost of scoring neurons by several methods in one pass, in stock passes.

    python -m benchmarks.method_cost

Identification as users get it, with 5 Gauss-Lobatto nodes and the sums over questions; `workload`
defines a stock pass. Methods with the same target share their backward pass, and only a target over
the whole vocabulary needs the logits of every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.workload import (
    N_PROXIES,
    Run,
    build_model,
    in_turn,
    make_prompts,
    parser,
    score,
    setting,
    stock_model,
)
from neuronllm_eval.attribution.identify import IdentificationSettings, empty_sums, identify
from neuronllm_eval.attribution.methods import METHODS, make_method
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.prompts import Question

CHOICES = (*((name,) for name in METHODS), ("ace", "gradxact"), ("ace", "qrnca", "tn"), (*METHODS,))


def score_neurons(run: Run, names: Sequence[str], n_nodes: int) -> None:
    """Identify the prompts' neurons by these methods."""
    starts = range(0, len(run.prompts), N_PROXIES)
    questions = [Question(str(at), tuple(run.prompts[at : at + N_PROXIES])) for at in starts]
    settings = IdentificationSettings(
        tuple(make_method(name) for name in names),
        Quadrature("gauss_lobatto", n_nodes),
        batch_size=run.batch_size,
    )
    engine = run.engine()
    for _ in identify(engine, questions, settings, empty_sums(engine, questions, settings.methods)):
        pass


def measure(
    n_layers: int, n_tokens: int, n_questions: int, batch_size: int, repeats: int, n_nodes: int = 5
) -> list[list[str]]:
    """Rows of the table: methods, milliseconds per prompt, stock passes."""
    model = build_model(n_layers)
    prompts = make_prompts(n_tokens, n_questions)
    run, lm = Run(model, prompts, batch_size), stock_model(model, batch_size)
    actions: dict[str, Callable[[], object]] = {"stock pass": partial(score, lm, prompts)}
    for names in CHOICES:
        actions[", ".join(names)] = partial(score_neurons, run, names, n_nodes)
    times = in_turn(actions, repeats)
    base = times["stock pass"]
    return [
        [
            str(n_layers),
            str(n_tokens),
            name,
            f"{1e3 * each / len(prompts):.0f}",
            f"{each / base:.2f}",
        ]
        for name, each in times.items()
    ]


def main() -> None:
    """Print the table."""
    flags = parser(__doc__)
    flags.add_argument("--tokens", type=int, nargs="+", default=[150, 400])
    flags.add_argument("--layers", type=int, default=12)
    flags.add_argument("--questions", type=int, default=8)
    options = flags.parse_args()
    print(f"{setting(options)}; {N_PROXIES} prompts per question")
    rows = [
        row
        for n_tokens in options.tokens
        for row in measure(
            options.layers, n_tokens, options.questions, options.batch_size, options.repeats
        )
    ]
    print(markdown_table(["layers", "tokens", "methods", "ms per prompt", "stock passes"], rows))


if __name__ == "__main__":
    main()
