"""What becomes of every argument of lm_eval's Hugging Face model, `HFLM`, in `--model_args`.

`identify`, `validate`, `verify`, `explain` and `run` load the model through `HFLM`, but all stages
except `run` score and differentiate it themselves. `MODEL_ARGS` says of each argument of `HFLM`
whether it decides the model, its prompts or no number at all, or which of its values the stages
refuse. A test compares the table with the signature of `HFLM`. Arguments that are not its own go to
`transformers`' `from_pretrained`, in all commands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from neuronllm_eval.errors import UsageError

MODEL = "decides which model is loaded, and where; all commands load it alike"
PROMPTS = "decides the text or the tokens of prompts, which the harness makes for all commands"
UNUSED = "has no effect on log-likelihoods"


class Argument(NamedTuple):
    """One argument of `HFLM`.

    Attributes:
        effect: what it decides.
        flag: whether its value must be True or False.
        least: the smallest value of a whole number.
        accepted: the values that the stages accept beside None; None for all.
        remedy: what to do instead of passing another value.
    """

    effect: str
    flag: bool = False
    least: int | None = None
    accepted: Collection[object] | None = None
    remedy: str = ""


MODEL_ARGS: dict[str, Argument] = {
    "pretrained": Argument(MODEL),
    "backend": Argument(MODEL, accepted=("default", "causal"), remedy="use a decoder-only model"),
    "revision": Argument(MODEL),
    "subfolder": Argument(MODEL),
    "tokenizer": Argument(PROMPTS),
    "truncation": Argument(UNUSED, flag=True),
    "logits_cache": Argument(UNUSED, flag=True),
    "max_length": Argument("longer prompts lose demonstrations, in `run` their beginning", least=1),
    "device": Argument(MODEL),
    "dtype": Argument(MODEL),
    "softmax_dtype": Argument(
        "type of the log-softmax, which the stages compute in float32",
        accepted=("float32", "float64"),
        remedy="leave it out, or use `neuronllm-eval run`",
    ),
    "mixed_precision_dtype": Argument(
        "type under autocast, which the stages do not use",
        accepted=(),
        remedy="load the model in that type, dtype=bfloat16, or use `neuronllm-eval run`",
    ),
    "batch_size": Argument(UNUSED, accepted=(), remedy="pass --batch_size"),
    "max_batch_size": Argument(UNUSED),
    "trust_remote_code": Argument(MODEL, flag=True),
    "use_fast_tokenizer": Argument(PROMPTS),
    "add_bos_token": Argument(PROMPTS, flag=True),
    "prefix_token_id": Argument(PROMPTS, least=0),
    "parallelize": Argument(MODEL, flag=True),
    "max_memory_per_gpu": Argument(MODEL),
    "max_cpu_memory": Argument(MODEL),
    "offload_folder": Argument(MODEL),
    "tp_plan": Argument(
        MODEL, accepted=(), remedy="pass parallelize=True to split the model over devices"
    ),
    "peft": Argument(MODEL),
    "delta": Argument(MODEL),
    "autogptq": Argument(MODEL),
    "gptqmodel": Argument(MODEL),
    "gguf_file": Argument(MODEL),
    "think_end_token": Argument(UNUSED),
    "enable_thinking": Argument(
        PROMPTS, accepted=(False,), remedy="leave it out: options are scored without thinking"
    ),
    "chat_template_args": Argument(PROMPTS),
}


def require_model_args(arguments: Mapping[str, Any], *, stages: bool = False) -> None:
    """Refuse values that have no meaning; None counts as not given.

    Args:
        arguments: of `--model_args`.
        stages: also refuse what only `run` can do.

    Raises:
        UsageError: names the argument.
    """
    for name, value in arguments.items():
        argument = MODEL_ARGS.get(name)
        if argument is None or value is None:
            continue
        if argument.flag and not isinstance(value, bool):
            expected = "True or False"
        elif argument.least is not None and not (type(value) is int and value >= argument.least):
            expected = f"a whole number from {argument.least}"
        else:
            if stages:
                _require_accepted(name, value, argument)
            continue
        raise UsageError(
            f"{name} is {value!r:.100}", expected=expected, remedy=f"check {name} in --model_args"
        )


def _require_accepted(name: str, value: Any, argument: Argument) -> None:
    word = str(value).removeprefix("torch.")  # of a type
    if argument.accepted is None or word in map(str, argument.accepted):
        return
    raise UsageError(
        f"{name}={value!s:.100} in --model_args cannot be used here: {argument.effect}",
        expected=" or ".join(map(str, argument.accepted)) or f"no {name}",
        remedy=argument.remedy,
    )
