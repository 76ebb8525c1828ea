"""docs/method.md: the ACE score of every neuron from its definition, and as `identify` has it.

ES_e sums a question's attributions over its proxies; per layer, the z highest and lowest neurons
vote; ACE sums ES_e over the questions that a neuron is voted for by.
"""

from __future__ import annotations

import torch

from neuronllm_eval import identify
from neuronllm_eval.attribution.integrated_gradients import attribute
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.build import ReplayEngine
from neuronllm_eval.stages.load import load_model, load_run_task, selection_questions

(run,) = identify(
    tasks="demo_topic", limit=2, top_z=20, quadrature="gauss_legendre", n_steps=4,
    output_path="runs/by_hand", overwrite=True,
)  # fmt: skip
model = load_model(run.settings)
questions = selection_questions(model.lm, run.settings, load_run_task(run.settings)).questions
engine = ReplayEngine(model.lm.model, model.layers)  # full forward passes with hooks
rule = Quadrature("gauss_legendre", 4)

ace = torch.zeros(model.layers.shape, dtype=torch.float64)
for question in questions:
    es = sum(each.values.double() for each in attribute(engine, question.prompts, rule))
    best, worst = es.clamp(min=0).topk(20).indices, (-es).clamp(min=0).topk(20).indices
    votes = torch.zeros_like(es, dtype=torch.bool).scatter(1, best, es.gather(1, best) > 0)
    votes |= torch.zeros_like(votes).scatter(1, worst, es.gather(1, worst) < 0)
    ace += es * votes

difference = float((ace - torch.from_numpy(run.scores.score)).abs().max())
print(f"largest score {float(ace.max()):.3f}; largest difference {difference:.1e}")
assert difference < 1e-4
