"""The model cards of runs and exports: `README.md` as the Hub reads it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuronllm_eval.aqua.settings import PREFIX
from neuronllm_eval.export.manifest import Export
from neuronllm_eval.export.validated_figures import Figures
from neuronllm_eval.formats.markdown import escaped
from neuronllm_eval.formats.yaml_files import dump_yaml
from neuronllm_eval.interventions.conditions import OPERATIONS, ConditionName, factor_text
from neuronllm_eval.models.hub import is_repo_id
from neuronllm_eval.neurons.neuron_set import Provenance
from neuronllm_eval.prompts import ALL

# Stand for where the reader has an export, and a run.
HERE = "FOLDER_OR_REPO"
RUN = "hf://USER/REPO"
_TAGS = ["neuronllm", "interpretability", "lm-evaluation-harness"]


def front_matter(model: str, library: str, tags: Sequence[str] = ()) -> str:
    """The metadata that the Hub reads, between lines of three dashes.

    Args:
        model: base model; named only if it can be one of the Hub, which refuses other names.
        library: that loads the repository.
        tags: besides those of this package.
    """
    values: dict[str, Any] = {}
    if is_hub_model(model):
        values["base_model"] = model
    values |= {"library_name": library, "pipeline_tag": "text-generation", "tags": [*_TAGS, *tags]}
    return f"---\n{dump_yaml(values)}---\n"


def is_hub_model(name: str) -> bool:
    """Whether a model's name has the form USER/NAME or NAME of the Hub, and is no path."""
    return is_repo_id(name) and not Path(name).exists()


def adapter_card(export: Export, figures: Figures | None) -> str:
    """The card of an IA3 adapter or a merged checkpoint.

    Args:
        export: what it is.
        figures: what the run says of it; None where it does not.
    """
    known = export.provenance
    is_adapter = export.format == "peft"
    what = (
        "A PEFT IA3 adapter: a factor for every neuron, on the input of the FFN down-projections."
        if is_adapter
        else "A full checkpoint: the factors are multiplied into the FFN down-projections' weights."
    )
    return "\n".join(
        (
            front_matter(
                known.model,
                "peft" if is_adapter else "transformers",
                ["ia3", "adapter"] if is_adapter else [],
            ),
            f"# {escaped(export.condition)}: neurons of {escaped(known.task)}",
            "",
            f"{what} {_operations(export)} All other neurons keep the factor 1.",
            "",
            "## Where it comes from",
            "",
            *_origin(known),
            "",
            "## Figures",
            "",
            *_figures(export, figures),
            "",
            "## How to use it",
            "",
            *(_use_adapter(known) if is_adapter else _use_merged(known)),
            "",
            "## Limits",
            "",
            *_limits(export),
            "",
        )
    )


def _operations(export: Export) -> str:
    """What is done to which neurons, as sentences."""
    name = ConditionName.parse(export.condition)
    done = [
        f"the {kind} neurons are multiplied by {factor_text(getattr(export.scales, operation))}"
        for kind, operation in zip(("good", "bad"), OPERATIONS[name.condition], strict=True)
        if operation is not None
    ]
    whose = (
        f" (seed {name.seed}: random neurons of the same layers)" if name.seed is not None else ""
    )
    what = " and ".join(done) or "no neuron is changed"
    return (
        f"{what[0].upper()}{what[1:]}{whose}: {export.n_scaled} of "
        f"{export.n_layers * export.width} neurons, at every position."
    )


def _origin(known: Provenance) -> list[str]:
    facts = {
        "base model": known.model,
        "revision": known.model_revision,
        "weights (hash, type)": f"{known.model_hash}, {known.dtype}",
        "task": known.task,
        "neurons chosen on": f"{known.n_questions} questions ({known.n_prompts} prompts) of the "
        f"{known.split} split",
        "method": f"{known.method}, {known.quadrature} with {known.n_steps} nodes",
        "made by": f"neuronllm-eval {known.tool_version}, with lm_eval {known.lm_eval_version}",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {escaped(text)} |" for key, text in facts.items())]


def _figures(export: Export, figures: Figures | None) -> list[str]:
    if figures is None:
        return [
            "None yet: this was written without a validation of exactly this condition, number of "
            "neurons and scale. `neuronllm-eval validate` judges it; the cards below its run have "
            "figures then, and so does what `neuronllm-eval export` writes."
        ]
    effect, accuracy = figures.effect, figures.effect.accuracy
    assert effect.corrected is not None
    p_value = effect.corrected.p_value
    n_controls = effect.controls.n_controls if effect.controls else 0
    return [
        f"On {accuracy.n_questions} questions of the {escaped(figures.split)} split: accuracy "
        f"{accuracy.unmasked:.1f}% unmasked, {accuracy.condition:.1f}% under "
        f"{escaped(export.condition)}: {accuracy.delta:+.1f} points (95% interval "
        f"{accuracy.low:+.1f} to {accuracy.high:+.1f}; p "
        f"{f'{p_value:.4f}' if p_value >= 1e-3 else '<0.001'} after Holm's correction for "
        f"{effect.corrected.n_tests}); {effect.n_beyond} of {n_controls} layer-matched random "
        "controls moved less in the expected direction.",
        "",
        "These are of edits at every position, which is what is here; the command below measures "
        "it again."
        if figures.applied_at == ALL
        else "These are of edits at the scored positions only, as the paper has them. What is here "
        "edits every position, and has figures of its own: the command below measures them.",
    ]


def _use_adapter(known: Provenance) -> list[str]:
    return [
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({_one_line(known.model)!r})",
        f"model = PeftModel.from_pretrained(model, {HERE!r})",
        "```",
        "",
        *_harness(known, f"pretrained={_one_line(known.model)},peft={HERE}"),
    ]


def _use_merged(known: Provenance) -> list[str]:
    return [
        "As any checkpoint: `transformers`, vLLM, llama.cpp's converter.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({HERE!r})",
        "```",
        "",
        *_harness(known, f"pretrained={HERE}"),
    ]


def _harness(known: Provenance, model_args: str, command: str = "lm_eval --model hf") -> list[str]:
    """The command that measures it, of stock lm_eval or of this package's `run`."""
    task, include = _one_line(known.task), '"$(neuronllm-eval tasks)"'
    made = []
    if task.startswith(PREFIX):
        name = task.removeprefix(PREFIX)
        made = [f"neuronllm-eval tasks make {shlex.quote(name)} --output_path tasks"]
        task, include = f"aqua_{name}", "tasks"
    return [
        "```sh",
        *made,
        f"{command} --model_args {shlex.quote(model_args)} \\",
        f"    --include_path {include} --tasks {shlex.quote(task)}",
        "```",
    ]


def _limits(export: Export) -> list[str]:
    known = export.provenance
    lines = [
        f"- The neurons were chosen on {escaped(known.task)}; what the edit does to other tasks is "
        "not known until it is measured.",
        f"- They were chosen at {escaped(known.positions)} positions. Here every position is "
        "edited, also in text that is generated.",
        "- The licence is the base model's.",
    ]
    if export.format == "peft":
        lines += [
            f"- It belongs to the weights with the hash {escaped(known.model_hash)}. PEFT takes it "
            "on any weights of that shape without a word; `neuronllm-eval run` warns.",
            "- `lm_eval` with `peft=` cuts or fills up the vocabulary to the tokenizer's first. "
            "Where a base model's is padded, log-likelihoods then differ from those of the same "
            "model without an adapter.",
            "- Two adapters that are active at once multiply. Weights of `add_weighted_adapter` "
            "should add up to 1: all factors are weighted, also those that are 1.",
        ]
    else:
        lines.append(
            "- Factors that are powers of two, and 0, give the numbers of the adapter to the bit; "
            "others round every weight once."
        )
    return lines


def _one_line(text: str) -> str:
    """A name as it may stand in a block of code."""
    return "".join(sign if sign.isprintable() and sign != "`" else "?" for sign in text)


def run_card(known: Provenance, report: str) -> str:
    """The card of a run directory, around the text of its `report.md`."""
    model_args = f"pretrained={_one_line(known.model)},neurons={RUN},condition=enhance"
    return "\n".join(
        (
            front_matter(known.model, "neuronllm-eval"),
            f"# Good and bad neurons of {escaped(known.model)} at {escaped(known.task)}",
            "",
            *_origin(known),
            "",
            *_harness(known, model_args, "neuronllm-eval run --model neuronllm"),
            "",
            "`adapters/` holds the conditions as PEFT IA3 adapters: "
            "`PeftModel.from_pretrained(model, REPO, subfolder=...)`.",
            "",
            report,
        )
    )
