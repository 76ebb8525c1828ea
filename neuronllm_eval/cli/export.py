"""`neuronllm-eval export`: a condition of a run as a PEFT adapter or a merged checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neuronllm_eval.cli.commands import ExportSettings
from neuronllm_eval.errors import UsageError
from neuronllm_eval.export.ia3_adapter import (
    adapter_files,
    ia3_site,
    require_plain_model,
    rounded_factors,
)
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.export.merged_checkpoint import (
    merge_factors,
    require_mergeable,
    save_checkpoint,
)
from neuronllm_eval.export.model_card import Figures, adapter_card, validated_figures
from neuronllm_eval.formats.atomic import require_free_folder, whole_folder
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, ConditionName
from neuronllm_eval.masked_lm.mask_options import chosen_neurons, resolve_scales
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.fingerprints import require_same_shape, require_same_weights
from neuronllm_eval.models.loading import model_skeleton
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.artifacts import load_neurons, load_scores, load_settings
from neuronllm_eval.runs.directory import CARD_FILE, RunDirectory, find_runs
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load import load_model, require_trust


def export(asked: ExportSettings, show: Callable[[str], object]) -> int:
    """Write an export.

    Raises:
        NeuronLLMError: flags, the run, the model or the output folder cannot be used; then nothing
            is written.
    """
    output = asked.output_path
    if ConditionName.parse(asked.condition, "--condition").condition == UNMASKED:
        raise UsageError(
            f"--condition {asked.condition}",
            expected="a condition that changes something",
            remedy=f"choose of {', '.join(name for name in CONDITIONS if name != UNMASKED)}",
        )
    name = ConditionName.parse(asked.condition, "--condition")
    scales = resolve_scales(name, asked.scale, asked.suppress_scale, asked.enhance_scale)
    run = _only_run(asked.run_dir)
    settings = load_settings(run)
    require_trust(settings, asked.trust_remote_code)
    require_free_folder(output, EXPORT_FILE, asked.overwrite)
    require_plain_model(settings.model_args)
    found = load_neurons(run, settings)
    load_scores(run, found)  # of the same run, or refused
    neurons = chosen_neurons(found, name, asked.top_k)
    made, factors = Export.of(neurons, asked.condition, scales, asked.format)
    figures = validated_figures(run, made)
    if asked.format == "peft":
        _write_adapter(made, factors, neurons, settings, figures, output)
    else:
        on_device = settings.model_copy(update={"device": asked.device, "batch_size": 1})
        _write_merged(made, factors, neurons, on_device, figures, output)
    show(f"written to {output}")
    return 0


def _only_run(path: Path) -> RunDirectory:
    """The run at `path`, or the only one below it."""
    runs = find_runs(path)
    if len(runs) > 1:
        raise UsageError(
            f"{path} holds {len(runs)} runs: {', '.join(run.path.name for run in runs)}",
            expected="one run, whose condition is exported",
            remedy=f"name it, such as {runs[0].path}",
        )
    return runs[0]


def _write_adapter(
    made: Export,
    factors: NDArray[Any],
    neurons: NeuronSet,
    settings: RunSettings,
    figures: Figures | None,
    output: Path,
) -> None:
    model = model_skeleton(settings.model_args)
    layers = find_ffn_layers(model)
    require_same_shape(neurons, layers.shape, made.provenance.model)
    files = adapter_files(made, factors, ia3_site(model, layers), figures)
    with whole_folder(output) as folder:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)


def _write_merged(
    made: Export,
    factors: NDArray[Any],
    neurons: NeuronSet,
    settings: RunSettings,
    figures: Figures | None,
    output: Path,
) -> None:
    model = load_model(settings)
    name = made.provenance.model
    require_same_shape(neurons, model.layers.shape, name)
    require_same_weights(neurons, model.dtype, model.hash, name)
    require_mergeable(model.lm.model, model.layers)
    merge_factors(model.layers, rounded_factors(factors, model.dtype))
    with whole_folder(output) as folder:
        save_checkpoint(model.lm.model, settings.model_args, folder)
        (folder / EXPORT_FILE).write_text(made.to_json(), encoding="utf-8")
        (folder / CARD_FILE).write_text(adapter_card(made, figures), encoding="utf-8")
