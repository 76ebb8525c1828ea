"""The error of quadrature rules for the path integral, and what nodes by layer are worth.

    python -m benchmarks.quadrature
    python -m benchmarks.quadrature --pretrained MODEL --tasks sst2_text --include_path TASKS \\
        --questions 24 --layers

For each rule and number of nodes: the largest error of any neuron's attribution, against 64
Gauss-Legendre nodes and relative to the prompt's largest attribution (median and maximum over
prompts), and the completeness gap (mean and maximum over prompts and layers).

With `--layers`, `--quadrature auto` beside the rule that it replaced (Gauss-Lobatto with 5 nodes or
Gauss-Legendre with 4): processor time, the gap's share of the change, overlap of the top neurons of
the plain sum of attributions, and layer 0 against 128 Gauss-Legendre nodes.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch

from neuronllm_eval.attribution.integrated_gradients import Attribution, attribute
from neuronllm_eval.attribution.layer_nodes import choose_quadrature
from neuronllm_eval.attribution.quadrature import QUADRATURES, Quadrature
from neuronllm_eval.demo import FAMILIES, MODEL_DIR
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.engine.interface import Engine, option_cross_entropy
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load import LoadedModel, load_model, load_run_tasks, selection_questions

BATCH = 8
N_NODES = (1, 2, 3, 4, 5, 8, 16, 32)


def first_prompts(model: LoadedModel, asked: RunSettings) -> list[Prompt]:
    """The first proxies of the first questions of every task."""
    runs = load_run_tasks(asked)
    prompts = []
    for settings, task in runs.values():
        questions = selection_questions(model.lm, settings, task).questions
        prompts += [question.prompts[0] for question in questions]
    return prompts


def row(name: str, n_steps: int, found: list[Attribution], exact: list[Attribution]) -> list[str]:
    """One line of the table."""
    errors = [
        float((one.values - other.values).abs().max() / other.values.abs().max())
        for one, other in zip(found, exact, strict=True)
    ]
    gaps = torch.stack([one.completeness_gap for one in found])
    figures = (np.median(errors), max(errors), float(gaps.mean()), float(gaps.max()))
    return [name, str(n_steps), *(f"{figure:.1e}" for figure in figures)]


def top(found: list[Attribution], k: int, *, good: bool) -> set[int]:
    """The neurons of the highest, or of the lowest, sums over prompts."""
    total = torch.stack([one.values for one in found]).sum(0).flatten()
    return set(total.topk(k, largest=good).indices.tolist())


def by_layer(engine: Engine, prompts: list[Prompt], old: list[Quadrature], top_k: int) -> None:
    """Print what nodes of each layer's own are worth, beside the same nodes in all layers."""
    start = time.process_time()
    chosen = choose_quadrature(engine, prompts, "auto")
    print(f"auto: {chosen.layer_nodes}, chosen in {time.process_time() - start:.1f} s")
    rules = {f"{rule.name} {rule.n_steps}": rule for rule in old} | {"auto": chosen}
    n_layers = engine.layers.n_layers
    fine = Quadrature("gauss_legendre", 128)
    nodes, weights = (torch.ones(n_layers, 129), torch.zeros(n_layers, 129))
    nodes[0, 0] = 0.0
    nodes[0, 1:], weights[0, 1:] = fine.rule()
    exact = [
        one.attribution[0]
        for prompt in prompts
        for one in engine.integrate([prompt], nodes, weights, option_cross_entropy)
    ]
    results, rows = {}, []
    for name, rule in rules.items():
        start = time.process_time()
        results[name] = [
            one
            for first in range(0, len(prompts), BATCH)
            for one in attribute(engine, prompts[first : first + BATCH], rule)
        ]
        seconds = time.process_time() - start
        gaps, changes = (
            torch.stack([getattr(one, field) for one in results[name]]).abs().sum(0)
            for field in ("completeness_gap", "target_change")
        )
        first = [one.values[0] for one in results[name]]
        off = torch.stack([(a - b).abs().sum() for a, b in zip(first, exact, strict=True)]).sum()
        size = torch.stack([values.abs().sum() for values in exact]).sum()
        shares = gaps / changes
        rows.append(
            [
                name,
                f"{seconds:.1f}",
                f"{float(gaps.sum() / changes.sum()):.2%}",
                f"{float(shares.median()):.2%}",
                f"{float(shares[0]):.2%}",
                str(int((shares > 0.1).sum())),
                f"{float(torch.stack(first).sum()):.3f}",
                f"{float(off / size):.2%}",
            ]
        )
    print(f"layer 0 by 128 nodes: {float(torch.stack(exact).sum()):.3f} log-nats in all")
    headers = ["rule", "CPU s", "gap, share", "median layer", "layer 0", "layers over 10%"]
    print(markdown_table([*headers, "layer 0 sum", "layer 0 neurons off by"], rows))
    tops = {
        name: [top(found, top_k, good=good) for good in (True, False)]
        for name, found in results.items()
    }
    for name in rules:
        common = [len(a & b) for a, b in zip(tops[name], tops["auto"], strict=True)]
        print(f"{name}: top {top_k} of the sum in common with auto: good, bad = {common}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", default=str(MODEL_DIR))
    parser.add_argument("--tasks", default=",".join(f"demo_{family}" for family in FAMILIES))
    parser.add_argument("--include_path", type=Path, nargs="*", default=[])
    parser.add_argument("--questions", type=int, default=12, help="per family")
    parser.add_argument("--layers", action="store_true", help="compare auto with what it replaced")
    parser.add_argument("--top_k", type=int, default=46)
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    settings = RunSettings(
        model_args={"pretrained": options.pretrained, "dtype": "float32"},
        task=options.tasks,
        include_path=tuple(map(str, options.include_path)),
        limit=options.questions,
        overlap="drop",
    )
    model = load_model(settings)
    prompts = first_prompts(model, settings)
    engine = build_engine(model.lm.model, model.layers, prompts, n_nodes=8)
    if options.layers:
        old = [Quadrature("gauss_lobatto", 5), Quadrature("gauss_legendre", 4)]
        by_layer(engine, prompts, old, options.top_k)
        return

    def attributions(name: str, n_steps: int) -> list[Attribution]:
        return attribute(engine, prompts, Quadrature(name, n_steps))

    exact = attributions("gauss_legendre", 64)
    rows = [
        row(name, n_steps, attributions(name, n_steps), exact)
        for name in QUADRATURES
        for n_steps in N_NODES
        if n_steps >= QUADRATURES[name].least_n_steps
    ]
    headers = ["rule", "nodes", "median error", "max error", "mean gap", "max gap"]
    print(f"{len(prompts)} prompts; errors relative, gaps in log-nats")
    print(markdown_table(headers, rows))


if __name__ == "__main__":
    main()
