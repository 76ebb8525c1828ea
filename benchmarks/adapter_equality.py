"""Whether an exported condition gives the masked model's log-likelihoods, bit for bit.

    python -m benchmarks.adapter_equality

A tiny random model of every supported architecture, saved in many shards and loaded, under
`enhance` (good neurons doubled, bad ones zeroed) and at a factor of 1.3, not a power of two.
The same requests go through stock `lm_eval`'s model with the adapter, with PEFT's merge of it, with
the merged checkpoint, and through `neuronllm` with positions=all. Figures are the largest
difference of a log-likelihood from the last of these; 0 means that all bits are equal.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.utils import logging as transformers_logging

from neuronllm_eval.export.ia3_adapter import adapter_files, ia3_site, rounded_factors
from neuronllm_eval.export.manifest import Export
from neuronllm_eval.export.merged_checkpoint import merge_factors, save_checkpoint
from neuronllm_eval.formats.markdown import markdown_table
from neuronllm_eval.interventions.conditions import Scales
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.fingerprints import model_hash
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet
from tests.fixtures.tiny_models import (
    CONFIGS,
    REPLAY_ONLY,
    VOCABULARY,
    provenance,
    random_model,
    tiny_model,
)

BIASED = "llama_mlp_bias"  # a gated FFN whose down-projection has a bias
ARCHITECTURES = (*CONFIGS, *REPLAY_ONLY, BIASED)
SHARDS = "20KB"
WAYS = ("peft", "peft, merged", "merged checkpoint", "neuronllm, fast")
# condition -> factors
CASES = {"enhance": Scales(), "enhance_good": Scales(enhance=1.3)}
Answers = list[tuple[float, bool]]


@dataclass(frozen=True)
class Exported:
    """Folders of one model, of an adapter of it, and of its merged checkpoint."""

    base: Path
    adapter: Path
    merged: Path
    neurons: NeuronSet
    condition: str
    scales: Scales


def random_neurons(shape: tuple[int, int], **origin: str) -> NeuronSet:
    """A quarter of all neurons as good, and as many as bad ones."""
    places = np.random.default_rng(0).permutation(shape[0] * shape[1]).tolist()
    k = len(places) // 4

    def some(chosen: Sequence[int], score: float) -> tuple[Neuron, ...]:
        return tuple(Neuron(place // shape[1], place % shape[1], score) for place in chosen)

    return NeuronSet(
        *shape, some(places[:k], 1.0), some(places[k : 2 * k], -1.0), k, "keep",
        provenance(model_revision="main", **origin),
    )  # fmt: skip


def save_base(architecture: str, dtype: str, folder: Path) -> None:
    """Save a random model in many shards, and a tokenizer of a word for each token."""
    if architecture == BIASED:
        config = CONFIGS["llama"]()
        config.mlp_bias = True
        model = random_model(config, getattr(torch, dtype))
    else:
        model = tiny_model(architecture, getattr(torch, dtype))
    for module in find_ffn_layers(model).modules:
        if isinstance(module.bias, torch.Tensor):  # made of zeros
            torch.nn.init.normal_(module.bias)
    model.save_pretrained(folder, max_shard_size=SHARDS)
    words = {f"w{token}": token for token in range(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, "w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", bos_token="w1", eos_token="w2"
    ).save_pretrained(folder)


def write_exports(base: Path, folder: Path, condition: str, scales: Scales) -> Exported:
    """An adapter and a merged checkpoint of the model in `base`, under one condition."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    layers = find_ffn_layers(model)
    dtype = str(model.dtype).removeprefix("torch.")
    neurons = random_neurons(
        layers.shape, dtype=dtype, model=str(base), model_hash=model_hash(model)
    )
    found = Exported(base, folder / "peft", folder / "merged", neurons, condition, scales)
    made, factors = Export.of(neurons, condition, scales, "peft")
    found.adapter.mkdir(parents=True)
    for name, content in adapter_files(made, factors, ia3_site(model, layers)).items():
        data = content.encode() if isinstance(content, str) else content
        (found.adapter / name).write_bytes(data)
    merge_factors(layers, rounded_factors(factors, dtype))
    save_checkpoint(model, {"pretrained": str(base)}, found.merged)
    return found


def requests(count: int) -> list[Instance]:
    """Contexts of 4 to 20 words, each with four options of one or two words."""
    random = np.random.default_rng(1)
    found = []
    for number in range(count):
        context = " ".join(
            f"w{token}" for token in random.integers(10, VOCABULARY, 4 + number % 17)
        )
        for option in range(4):
            words = f" w{5 + option}" + f" w{60 + number}" * (number % 2)
            found.append(
                Instance("loglikelihood", {"doc_id": number}, (context, words), option,
                         metadata=("none", number, 1))
            )  # fmt: skip
    return found


def ways(export: Exported, instances: Sequence[Instance]) -> dict[str, Answers]:
    """Answers by way; `neuronllm` row by row is the one that the others are compared with."""
    base = str(export.base)
    # Not by AutoTokenizer, which makes another one of it for some architectures.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(base)
    stock = {"device": "cpu", "batch_size": 4, "tokenizer": tokenizer}
    masked = {
        "neurons": export.neurons,
        "condition": export.condition,
        "suppress_scale": export.scales.suppress,
        "enhance_scale": export.scales.enhance,
        "positions": "all",
        **stock,
    }

    def answers(lm: HFLM) -> Answers:
        return [tuple(answer) for answer in lm.loglikelihood(list(instances), disable_tqdm=True)]

    wrapped = PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), str(export.adapter)
    )
    merged = wrapped.merge_and_unload()
    return {
        "peft": answers(HFLM(base, peft=str(export.adapter), **stock)),
        "peft, merged": answers(HFLM(merged, **stock)),
        "merged checkpoint": answers(HFLM(str(export.merged), **stock)),
        "neuronllm, fast": answers(NeuronMaskedLM(base, **masked)),
        "neuronllm": answers(NeuronMaskedLM(base, fast=False, **masked)),
        "unmasked": answers(HFLM(base, **stock)),
    }


def difference(ones: Answers, others: Answers) -> float:
    """The largest of log-likelihoods."""
    return max(abs(one - other) for (one, _), (other, _) in zip(ones, others, strict=True))


def measure(
    architectures: Sequence[str], dtypes: Sequence[str], n_contexts: int
) -> list[list[str]]:
    """Rows of the table."""
    instances, rows = requests(n_contexts), []
    for architecture in architectures:
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as scratch:
                base = Path(scratch) / "base"
                save_base(architecture, dtype, base)
                for condition, scales in CASES.items():
                    export = write_exports(base, Path(scratch) / condition, condition, scales)
                    found = ways(export, instances)
                    gaps = [difference(found[way], found["neuronllm"]) for way in WAYS]
                    effect = difference(found["unmasked"], found["neuronllm"])
                    rows.append(
                        [architecture, dtype, f"{scales.enhance:g}"]
                        + [f"{gap:.1e}" if gap else "0" for gap in gaps]
                        + [f"{effect:.2g}"]
                    )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--contexts", type=int, default=17)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rows = measure(options.architectures, options.dtypes, options.contexts)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print(markdown_table(["architecture", "type", "factor", *WAYS, "effect"], rows))


if __name__ == "__main__":
    main()
