"""The model cards of runs and exports: `README.md` as the Hub reads it, from `templates/`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from neuronllm_eval.aqua.settings import PREFIX
from neuronllm_eval.evaluation.condition_effects import StoredCondition, load_summary
from neuronllm_eval.export.manifest import Export
from neuronllm_eval.formats.inert_text import inert
from neuronllm_eval.formats.markdown import escaped
from neuronllm_eval.formats.plain_files import dump_yaml
from neuronllm_eval.interventions.conditions import (
    CONDITION_OPERATIONS,
    ConditionName,
    Scales,
    factor_text,
    only_operation,
)
from neuronllm_eval.models.hub import is_repo_id
from neuronllm_eval.neurons.neuron_set import Provenance
from neuronllm_eval.runs.artifacts import load_validation
from neuronllm_eval.runs.directory import RunDirectory

# Stand for where the reader has an export, and a run.
HERE = "FOLDER_OR_REPO"
RUN = "hf://USER/REPO"
_TAGS = ["neuronllm", "interpretability", "lm-evaluation-harness"]


@dataclass(frozen=True)
class Figures:
    """The measured effect of a condition.

    Attributes:
        split: the validation split.
        effect: of the condition, as `summary.json` has it.
        applied_at: positions that were edited (`prompts.POSITIONS`).
    """

    split: str
    effect: StoredCondition
    applied_at: str


def validated_figures(run: RunDirectory, export: Export) -> Figures | None:
    """The figures of the same condition, number of neurons and scales; None if there are none.

    A condition that edits no neuron has none.

    Raises:
        ArtifactError: `summary.json` or `validation.json` is damaged, or a file of the validation
            is missing.
    """
    run.require_listed("validate")
    if not (run.summary.is_file() and run.validation.is_file()):
        return None
    record, summary = load_validation(run), load_summary(run)
    exported = _intervention(export.condition, export.top_k, export.scales)
    for effect in summary.conditions:
        name = ConditionName.parse(effect.name)
        top_k, scales = name.top_k or record.top_k, name.scales(record.scales)
        if _intervention(effect.name, top_k, scales) == exported and effect.corrected is not None:
            return Figures(summary.split, effect, record.positions)
    return None


def _intervention(condition: str, top_k: int, scales: Scales) -> tuple[Any, ...]:
    """All that distinguishes one intervention on a run's neurons from another."""
    name = ConditionName.parse(condition)
    operation = only_operation(name.condition)
    factors = scales if operation is None else scales.factor(operation)
    return name.condition, name.seed, top_k, factors


def adapter_card(export: Export, figures: Figures | None) -> str:
    """The card of an IA3 adapter or a merged checkpoint.

    Args:
        export: the adapter or checkpoint.
        figures: its effect; None where the run has not measured it.
    """
    is_adapter = export.format == "peft"
    base = _one_line(export.provenance.model)
    source = _model_args(export.provenance)
    return _card(
        "export",
        export.provenance,
        "peft" if is_adapter else "transformers",
        f"{source},peft={HERE}" if is_adapter else f"pretrained={HERE}",
        ["ia3", "adapter"] if is_adapter else [],
        export=export,
        figures=figures,
        is_adapter=is_adapter,
        operations=_operations(export),
        model_name=base,
        gguf_file=_one_line(export.provenance.gguf_file),
        here=HERE,
    )


def run_card(known: Provenance, report: str) -> str:
    """The card of a run directory, around the text of its `report.md`."""
    model_args = f"{_model_args(known)},neurons={RUN},condition=enhance"
    return _card("run", known, "neuronllm-eval", model_args, report=report)


def _model_args(known: Provenance) -> str:
    """What loads the model in the harness."""
    gguf = f",gguf_file={_one_line(known.gguf_file)}" if known.gguf_file else ""
    return f"pretrained={_one_line(known.model)}{gguf}"


def _card(
    template: str,
    known: Provenance,
    library: str,
    model_args: str,
    tags: Sequence[str] = (),
    **values: Any,
) -> str:
    card = (
        _environment()
        .get_template(f"{template}.md.j2")
        .render(
            front_matter=_front_matter(known.model, library, tags),
            known=known,
            task=_one_line(known.task),
            model_args=model_args,
            aqua_prefix=PREFIX,
            **values,
        )
    )
    return inert(card)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(  # noqa: S701 - markdown; what comes from elsewhere is escaped
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escaped": escaped, "word": shlex.quote, "python": repr}
    return environment


def _front_matter(model: str, library: str, tags: Sequence[str]) -> str:
    """The metadata that the Hub reads, between lines of three dashes.

    Args:
        model: base model; named only if it can be one of the Hub, which refuses other names.
        library: that loads the repository.
        tags: besides those of this package.
    """
    values: dict[str, Any] = {"base_model": model} if is_hub_model(model) else {}
    values |= {"library_name": library, "pipeline_tag": "text-generation", "tags": [*_TAGS, *tags]}
    return f"---\n{dump_yaml(values)}---\n"


def is_hub_model(name: str) -> bool:
    """Whether a model's name has the form USER/NAME or NAME of the Hub, and is not a path."""
    return is_repo_id(name) and not Path(name).exists()


def _operations(export: Export) -> str:
    """Which neurons are multiplied by what, as a sentence."""
    name = ConditionName.parse(export.condition)
    operations = [
        f"the {valence} neurons are multiplied by {factor_text(export.scales.factor(operation))}"
        for valence, operation in zip(
            ("good", "bad"), CONDITION_OPERATIONS[name.condition], strict=True
        )
        if operation is not None
    ]
    random = "" if name.seed is None else f" (seed {name.seed}: random neurons of the same layers)"
    sentence = " and ".join(operations) or "no neuron is changed"
    return (
        f"{sentence[0].upper()}{sentence[1:]}{random}: {export.n_scaled} of "
        f"{export.n_layers * export.width} neurons, at every position."
    )


def _one_line(text: str) -> str:
    """A name as it may stand in a block of code."""
    return "".join(each if each.isprintable() and each != "`" else "?" for each in text)
