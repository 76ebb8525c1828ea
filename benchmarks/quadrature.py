"""The error of quadrature rules for the path integral, on the embedded model.

    python -m benchmarks.quadrature

For each rule and number of nodes: the largest error of any neuron's attribution, against 64
Gauss-Legendre nodes and relative to the prompt's largest attribution (median and maximum over
prompts), and the completeness gap (mean and maximum over prompts and layers).
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch

from neuronllm_eval.attribution.integrated_gradients import (
    QUADRATURES,
    Attribution,
    Quadrature,
    attribute,
)
from neuronllm_eval.demo import FAMILIES, MODEL_DIR
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.prompts import Prompt
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load import LoadedModel, load_model, load_run_tasks, selection_questions

N_NODES = (1, 2, 3, 4, 5, 8, 16, 32)


def demo_prompts(model: LoadedModel, pretrained: str, n_questions: int) -> list[Prompt]:
    """The first proxies of the first questions of every demo family."""
    tasks = ",".join(f"demo_{family}" for family in FAMILIES)
    runs = load_run_tasks(
        RunSettings(model_args={"pretrained": pretrained}, task=tasks, limit=n_questions)
    )
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", default=str(MODEL_DIR))
    parser.add_argument("--questions", type=int, default=12, help="per family")
    options = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    settings = RunSettings(
        model_args={"pretrained": options.pretrained, "dtype": "float32"}, task="demo"
    )
    model = load_model(settings)
    prompts = demo_prompts(model, options.pretrained, options.questions)
    engine = build_engine(model.lm.model, model.layers, prompts)

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
