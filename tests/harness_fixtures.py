"""Tiny model folders, tokenizers and task folders for the tests that go through the harness.

Everything is made from code in a temporary folder, once per process. Weights are random: where a
test needs what training gave, `demo_model_dir` is the one place that knows of the shipped model.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy as np
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuronllm_eval.demo import FAMILIES, MODEL_DIR, load_questions
from neuronllm_eval.harness.packaged_tasks import tasks_dir
from neuronllm_eval.harness.tasks import load_tasks
from neuronllm_eval.neurons.neuron_set import Neuron, NeuronSet, Provenance
from neuronllm_eval.prompts import Prompt

N_LAYERS = 2
WIDTH = 48
CONTEXT = 512
DEMO_TASKS = tuple(f"demo_{family}" for family in FAMILIES)
# Ends without white space, so that the letter follows the header directly.
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }} [end]"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
# As Qwen and many others have it, and as Llama 3; both end with white space.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_SPECIAL = ("<pad>", "<s>", "</s>")
_HEADERS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@cache
def scratch() -> Path:
    """A folder for this process, removed at its end."""
    path = Path(tempfile.mkdtemp(prefix="neuronllm_eval_tests_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


# Tokenizers -------------------------------------------------------------------------------------


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    pad, bos, eos = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=CONTEXT,
    )


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which ` A` is one token, and so is `A`."""
    questions = [load_questions(family, "selection")[:60] for family in FAMILIES]
    texts = [" ".join((doc["question"], *doc["choices"])) for docs in questions for doc in docs]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*texts, *[" A B C D Question: Answer:"] * 200], trainer)
    return _wrap(backend)


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """As `word_tokenizer`, with the tokens of chat templates, and `<s>` before every text."""
    backend = Tokenizer.from_str(word_tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens(list(_HEADERS))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return _wrap(backend)


@cache
def split_space_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, so that ` A` is the two tokens of the space and of the letter."""
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, "▁", "\n"))}
    for code in range(33, 127):
        vocabulary[chr(code)] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never")
    return _wrap(backend)


@cache
def letterblind_tokenizer() -> PreTrainedTokenizerFast:
    """Every word is the same unknown token, so that no letter can be told from another."""
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(_SPECIAL)}, "</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrap(backend)


TOKENIZERS = {
    "words": word_tokenizer,
    "chat": chat_tokenizer,
    "split_space": split_space_tokenizer,
    "letterblind": letterblind_tokenizer,
}


# Models -----------------------------------------------------------------------------------------


@cache
def model_dir(
    tokenizer: str = "words",
    *,
    n_layers: int = N_LAYERS,
    width: int = WIDTH,
    chat_template: str | None = None,
    context: int = CONTEXT,
    seed: int = 0,
) -> Path:
    """A folder with a random Llama-like model that the harness loads like any other."""
    template = hashlib.sha256((chat_template or "").encode()).hexdigest()[:8]
    path = scratch() / f"model_{tokenizer}_{n_layers}_{width}_{template}_{context}_{seed}"
    own = TOKENIZERS[tokenizer]()
    config = LlamaConfig(
        vocab_size=len(own),
        hidden_size=32,
        intermediate_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,  # spreads the logits, so that edits and questions differ
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(path)
    own.chat_template = chat_template
    own.save_pretrained(path)
    own.chat_template = None
    return path


@cache
def harness_model(path: Path, batch_size: int = 1) -> HFLM:
    """The stock harness model of a folder; shared, so not to be changed."""
    return HFLM(pretrained=str(path), device="cpu", batch_size=batch_size)


def demo_model_dir() -> Path:
    """The shipped model; the test is skipped in a checkout where it is not trained yet."""
    if not (MODEL_DIR / "config.json").is_file():
        pytest.skip("the embedded model has not been trained yet")
    return MODEL_DIR


class SpyLM(HFLM):
    """Stock HFLM that keeps what reaches the model: (context ids, continuation ids)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def _loglikelihood_tokens(self, requests, *args, **kwargs):
        self.seen += [(tuple(context), tuple(rest)) for _, context, rest in requests]
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


def loglikelihood_requests(pairs: Sequence[tuple[str, str]]) -> list[Instance]:
    """Harness requests for (context, continuation) texts."""
    return [
        Instance("loglikelihood", {}, pair, index, metadata=("none", index, 1))
        for index, pair in enumerate(pairs)
    ]


# Tasks ------------------------------------------------------------------------------------------


def a_doc(number: int, answer: int = 0, n_options: int = 4, **columns: Any) -> dict[str, Any]:
    """A question of its own kind, with `n_options` options."""
    return {
        "question": f"Which is number {number}?",
        "choices": [f"thing {number} {kind}" for kind in range(n_options)],
        "answer": answer,
        **columns,
    }


def some_docs(first: int, count: int = 4) -> list[dict[str, Any]]:
    """Questions `first` to `first + count - 1`, their golds spread over the letters."""
    return [a_doc(number, number % 4) for number in range(first, first + count)]


# The data of a task that is not an AQUA task: a module next to its YAML.
_DATA_MODULE = textwrap.dedent("""
    from pathlib import Path

    from tests.harness_fixtures import read_splits


    def load(**_):
        return read_splits(Path(__file__).with_name("%s.json"))
""")


def read_splits(file: str | Path, **_: Any) -> datasets.DatasetDict:
    """The splits that `TaskFolder.write` wrote."""
    splits = json.loads(Path(file).read_text(encoding="utf-8"))
    return datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()})


def _read_by(file: Path, splits: Mapping[str, Any]) -> dict[str, Any]:
    """The `dataset_kwargs` by which an AQUA task reads such a file."""
    # AQUA tasks remember data by these arguments, so that they must tell contents apart.
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    source: dict[str, Any] = {
        "load": f"{__name__}.{read_splits.__name__}",
        "load_kwargs": {"file": str(file), "digest": digest},
        "selection_split": "train",
        "validation_split": "test",
    }
    if "demonstration" in splits:
        source["demonstration_split"] = "demonstration"
    return source


@dataclass(frozen=True)
class TaskFolder:
    """Writes harness tasks with data of their own into a folder for `--include_path`."""

    path: Path
    defaults: Mapping[str, Any] = field(
        default_factory=lambda: {
            "output_type": "multiple_choice",
            "training_split": "train",
            "test_split": "test",
            "doc_to_text": "{{question}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        }
    )

    def write(
        self,
        name: str,
        splits: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        *,
        aqua: bool = False,
        data: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> str:
        """Write task `name`; settings that are None are left out of the YAML.

        Args:
            name: of the task.
            splits: its docs; some of `train` and of `test` if not given.
            aqua: whether it is an AQUA task; `demonstration` is then the split for demonstrations.
            data: of an AQUA task, more `dataset_kwargs`.
            metadata: of an AQUA task, settings.
            config: any other setting of the YAML.
        """
        splits = splits or {"train": some_docs(0), "test": some_docs(100)}
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / f"{name}.json"
        file.write_text(json.dumps(splits), encoding="utf-8")
        if aqua:
            settings: dict[str, Any] = {
                "include": str(tasks_dir() / "aqua" / "_aqua.yaml"),
                "task": name,
                "dataset_kwargs": {**_read_by(file, splits), **(data or {})},
                "metadata": {"version": 1.0, "counts": {}, **(metadata or {})},
                **config,
            }
            text = ""
        else:
            (self.path / f"{name}_data.py").write_text(_DATA_MODULE % name, encoding="utf-8")
            settings = {"task": name, **self.defaults, **config}
            text = f"custom_dataset: !function {name}_data.load\n"
        text += yaml.safe_dump({k: v for k, v in settings.items() if v is not None})
        (self.path / f"{name}.yaml").write_text(text, encoding="utf-8")
        return name

    def load(self, name: str, **overrides: Any) -> ConfigurableTask:
        """The task, as the package loads it."""
        return load_tasks([name], [self.path], overrides=overrides)[name]


def demo_task(name: str = "demo_topic") -> ConfigurableTask:
    """A fresh copy of a demo task."""
    return load_tasks([name])[name]


def include_paths(folder: TaskFolder | None = None) -> list[str]:
    """What a stock `TaskManager` needs to know the demo tasks and a folder's."""
    return [str(tasks_dir()), *([str(folder.path)] if folder else [])]


def stock_requests(
    path: Path,
    name: str,
    folder: TaskFolder | None = None,
    limit: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    **settings: Any,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What reaches the model when stock lm_eval runs a task: (context, continuation) ids."""
    spy = SpyLM(pretrained=str(path), device="cpu", batch_size=8)
    manager = TaskManager(
        include_path=include_paths(folder), include_defaults=False, metadata=dict(metadata or {})
    )
    lm_eval.simple_evaluate(
        spy, tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=0, **settings
    )
    return spy.seen


def whole(seen: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """Everything the model was asked about, wherever the context ends."""
    return [context + rest for context, rest in seen]


def sequences(prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """The same of our prompts, option by option."""
    return [prompt.context + option for prompt in prompts for option in prompt.options]


# Neurons ----------------------------------------------------------------------------------------


def provenance(**changes: Any) -> Provenance:
    """Some provenance; the numbers mean nothing."""
    values: dict[str, Any] = {
        name: {"str": "x", "int": 1, "float | None": 0.5}[str(kind)]
        for name, kind in Provenance.__annotations__.items()
    }
    return Provenance(**{**values, "positions": "scored", **changes})


def neuron_set(
    good: Sequence[tuple[int, int]] = ((0, 1), (1, 2), (1, 7), (0, 40)),
    bad: Sequence[tuple[int, int]] = ((0, 3), (1, 4), (1, 30), (0, 22)),
    *,
    n_layers: int = N_LAYERS,
    width: int = WIDTH,
    **origin: Any,
) -> NeuronSet:
    """Chosen neurons of the tiny model, best first."""
    return NeuronSet(
        n_layers=n_layers,
        width=width,
        good=tuple(Neuron(layer, index, 9.0 - k) for k, (layer, index) in enumerate(good)),
        bad=tuple(Neuron(layer, index, k - 9.0) for k, (layer, index) in enumerate(bad)),
        top_k=max(len(good), len(bad)),
        ambiguous="keep",
        provenance=provenance(**origin),
    )


def many_neurons(seed: int = 0, n_each: int = 20) -> NeuronSet:
    """So many neurons that suppressing or doubling them shows in every log-likelihood."""
    places = np.random.default_rng(seed).permutation(N_LAYERS * WIDTH)
    pairs = [(int(place) // WIDTH, int(place) % WIDTH) for place in places]
    return neuron_set(pairs[:n_each], pairs[n_each : 2 * n_each])
