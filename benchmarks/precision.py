"""How closely 16 bits identify the neurons that float32 identifies.

    python -m benchmarks.precision

The embedded model on each of its families, and a tiny random Llama on random prompts. The weights
are rounded to a 16-bit type once; attributions in that type are compared with attributions in
float32 (`--attribution_dtype float32`) of the same rounded weights, and of the unrounded ones.
Agreement is the rank correlation of ACE over all neurons with votes, and the share of the top 2% in
common; the score difference is the largest of any neuron, relative to the largest
score.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from neuronllm_eval.attribution.identify import IdentificationSettings, empty_sums, identify
from neuronllm_eval.demo import FAMILIES, MODEL_DIR
from neuronllm_eval.engine.build import build_engine
from neuronllm_eval.evaluation.stats.significance import SplitHalf, split_half_stability
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.hooks import computing_in
from neuronllm_eval.neurons.selection import resolve_count
from neuronllm_eval.prompts import Prompt, Question
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load import load_model, load_run_tasks, selection_questions

FULL = "float32"
HALVES = ("bfloat16", "float16")
TOP_K = 0.02
HEADERS = ["task", "type", "against float32 with", "rank correlation", "good in common",
           "bad in common", "score difference"]  # fmt: skip


def random_llama() -> LlamaForCausalLM:
    """A random Llama of 4 layers of 256 neurons, whose logits are spread as a trained one's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def random_questions(count: int) -> list[Question]:
    """Questions of three random prompts of 20 tokens, with another gold letter each."""
    generator = torch.Generator().manual_seed(0)

    def prompt(number: int, gold: int) -> Prompt:
        ids = torch.randint(10, 97, (20,), generator=generator)
        return Prompt(number, tuple(ids.tolist()), ((1,), (2,), (3,), (4,)), gold)

    return [
        Question(str(number), tuple(prompt(3 * number + gold, gold) for gold in range(3)))
        for number in range(count)
    ]


def ace(model: torch.nn.Module, questions: Sequence[Question], dtype: str) -> np.ndarray:
    """ACE of every neuron [layers * neurons], attributed in `dtype`."""
    layers = find_ffn_layers(model)
    prompts = [prompt for question in questions for prompt in question.prompts]
    with computing_in(model, dtype):
        engine = build_engine(model, layers, prompts, n_nodes=4)
        settings = IdentificationSettings(batch_size=48)
        sums = empty_sums(engine, questions)
        for _ in identify(engine, questions, settings, sums):
            pass
    return sums["ace"].half_sums.sum(0).astype(np.float64).ravel()


def rounded(model: torch.nn.Module, dtype: str) -> None:
    """Round the weights to `dtype` for good, and keep them in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()


def agreement(found: np.ndarray, expected: np.ndarray) -> tuple[SplitHalf, float]:
    """How far two ACE scores agree, and their largest difference relative to the largest score."""
    k = resolve_count(TOP_K, len(expected), "top_k")
    return split_half_stability(found, expected, k), float(
        np.abs(found - expected).max() / np.abs(expected).max()
    )


def compare(name: str, model: torch.nn.Module, questions: Sequence[Question]) -> list[list[str]]:
    """Rows of the table for one model in float32, which is left as it was, and its questions."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    unrounded = ace(model, questions, FULL)
    rows = []
    for dtype in HALVES:
        rounded(model, dtype)
        found = ace(model, questions, dtype)
        expected = {"the same weights": ace(model, questions, FULL), "its own weights": unrounded}
        model.load_state_dict(state)
        for against, scores in expected.items():
            same, difference = agreement(found, scores)
            rows.append(
                [name, dtype, against, f"{same.rank_correlation:.4f}",
                 f"{100 * same.top_k_overlap:.0f}%", f"{100 * same.bottom_k_overlap:.0f}%",
                 f"{difference:.1e}"]
            )  # fmt: skip
    return rows


def demo_rows(n_questions: int, families: Sequence[str] = FAMILIES) -> list[list[str]]:
    """Rows of the embedded model, one family after another."""
    settings = RunSettings(
        model_args={"pretrained": str(MODEL_DIR), "dtype": FULL},
        task=",".join(f"demo_{family}" for family in families),
        limit=n_questions,
        device="cpu",
    )
    model = load_model(settings)
    return [
        row
        for name, (own, task) in load_run_tasks(settings).items()
        for row in compare(name, model.lm.model, selection_questions(model.lm, own, task).questions)
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=int, default=120, help="per family")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    rows = demo_rows(options.questions)
    rows += compare("random llama", random_llama(), random_questions(options.questions))
    print(f"torch {torch.__version__}, {options.questions} questions each, top {TOP_K:.0%}")
    print(markdown_table(HEADERS, rows))


if __name__ == "__main__":
    main()
