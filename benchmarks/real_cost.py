"""The cost of identification, validation and masked evaluation of a model and task of your own.

    python -m benchmarks.real_cost --pretrained MODEL --tasks TASK --include_path FOLDER

Attribution of every neuron by the default rule, one step of it (`gradxact`), conditions of a
validation and an evaluation through `--model neuronllm`, in stock passes of the same questions
(lm-eval's own scoring of them, without loading and tokenising), and the peak of resident memory
above what was there after loading. Every action runs once, in a fork of the process that has loaded
the model (Linux).
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.memory import reset_peak, resident
from benchmarks.workload import parser, random_neurons, random_scales, score, seconds, setting
from neuronllm_eval.attribution.integrated_gradients import attribute, attribute_all
from neuronllm_eval.attribution.methods import GradXAct
from neuronllm_eval.attribution.quadrature import Quadrature
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.harness.aqua_conversion.convert import load_any_tasks
from neuronllm_eval.harness.requests import build_questions
from neuronllm_eval.harness.tasks import on_split, validation_split
from neuronllm_eval.harness.tokenize import PromptSettings
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models.ffn_layers import find_ffn_layers

Actions = dict[str, Callable[[], object]]


def prepare(lm: HFLM, task_name: str, include_path: list[str], n_questions: int) -> Actions:
    """What is measured, by name; the first is the stock pass."""
    task = load_any_tasks([task_name], include_path)[task_name]
    questions = build_questions(
        lm, on_split(task, validation_split(task)), PromptSettings(), n_questions
    )
    prompts, size = questions.prompts, int(lm.batch_size)
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    layers, rule = find_ffn_layers(lm.model), Quadrature("gauss_lobatto")
    engine = build_engine(lm.model, layers, prompts, "fan_out", rule.n_steps or 1)
    given = {"pretrained": lm.model, "tokenizer": lm.tokenizer, "batch_size": size}
    masked = partial(
        NeuronMaskedLM, **given, neurons=random_neurons(layers), condition="suppress_good"
    )
    step = [GradXAct.quantity]
    print(f"{len(questions.questions)} questions of {task_name}, {len(prompts)} prompts of "
          f"{sum(len(each.context) for each in prompts) / len(prompts):.0f} tokens")  # fmt: skip
    return {
        "stock pass": lambda: score(lm, prompts),
        f"attribution, {rule.n_steps} Gauss-Lobatto nodes": lambda: [
            attribute(engine, batch, rule) for batch in batches
        ],
        "attribution, one step": lambda: [
            attribute_all(engine, batch, rule, step) for batch in batches
        ],
        **{
            f"{count} conditions": lambda count=count: [
                engine.score(batch, random_scales(layers, count)) for batch in batches
            ]
            for count in (20, 127)
        },
        **{
            f"masked evaluation, positions={positions}": lambda positions=positions: score(
                masked(positions=positions), prompts
            )
            for positions in ("scored", "all")
        },
    }


def measured(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MiB at most above what is resident before; in a fork of this process."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(action, there))
    process.start()
    there.close()
    found: list[float] = json.loads(here.recv())
    process.join()
    return found[0], found[1]


def _measure(action: Callable[[], object], result: Connection) -> None:
    reset_peak()
    before = resident("VmRSS")
    time = seconds(action)
    result.send(json.dumps([time, resident("VmHWM") - before]))


def main() -> None:
    """Print the table."""
    flags = parser(__doc__, repeats=1)
    flags.add_argument("--pretrained", required=True)
    flags.add_argument("--tasks", nargs="+", required=True)
    flags.add_argument("--include_path", nargs="*", default=[])
    flags.add_argument("--questions", type=int, default=24)
    options = flags.parse_args()
    print(setting(options))
    lm = HFLM(options.pretrained, device="cpu", batch_size=options.batch_size, dtype=torch.float32)
    for name in options.tasks:
        rows, base = [], 0.0
        for what, action in prepare(lm, name, options.include_path, options.questions).items():
            time, peak = measured(action)
            base = base or time
            rows.append([what, f"{time:.1f}", f"{time / base:.2f}", f"{peak:.0f}"])
        print(markdown_table(["what", "seconds", "stock passes", "peak memory, MiB"], rows))


if __name__ == "__main__":
    main()
