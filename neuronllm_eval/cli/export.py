"""`neuronllm-eval export`: a condition of a run as a PEFT adapter or a merged checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from neuronllm_eval.export.model_card import adapter_card, validated_figures
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
from neuronllm_eval.stages.load import LoadedModel, load_model, require_trust


def export(request: ExportSettings, show: Callable[[str], object]) -> int:
    """Write an export.

    Raises:
        NeuronLLMError: flags, the run, the model or the output folder cannot be used; then nothing
            is written.
    """
    name = ConditionName.parse(request.condition, "--condition")
    if name.condition == UNMASKED:
        raise UsageError(
            f"--condition {request.condition}",
            expected="a condition that changes something",
            remedy=f"choose of {', '.join(name for name in CONDITIONS if name != UNMASKED)}",
        )
    scales = resolve_scales(name, request.scale, request.suppress_scale, request.enhance_scale)
    run = _only_run(request.run_dir)
    settings = load_settings(run)
    require_trust(settings, request.trust_remote_code)
    require_free_folder(request.output_path, EXPORT_FILE, request.overwrite)
    require_plain_model(settings.model_args)
    selected = load_neurons(run, settings)
    load_scores(run, selected)  # of the same run, or refused
    neurons = chosen_neurons(selected, name, request.top_k)
    manifest, factors = Export.of(neurons, request.condition, scales, request.format)
    figures = validated_figures(run, manifest)
    if request.format == "peft":
        skeleton = model_skeleton(settings.model_args)
        layers = find_ffn_layers(skeleton)
        require_same_shape(neurons, layers.shape, manifest.provenance.model_name)
        files = adapter_files(manifest, factors, ia3_site(skeleton, layers), figures)
        with whole_folder(request.output_path) as folder:
            _write(files, folder)
    else:
        on_device = settings.model_copy(update={"device": request.device, "batch_size": 1})
        model = _merged(on_device, neurons, factors, manifest.provenance.model_name)
        with whole_folder(request.output_path) as folder:
            save_checkpoint(model.lm.model, settings.model_args, folder)
            card = adapter_card(manifest, figures)
            _write({EXPORT_FILE: manifest.to_json(), CARD_FILE: card}, folder)
    show(f"written to {request.output_path}")
    return 0


def _merged(
    settings: RunSettings, neurons: NeuronSet, factors: NDArray[Any], name: str
) -> LoadedModel:
    """The run's model, the factors multiplied into its weights."""
    model = load_model(settings)
    require_same_shape(neurons, model.layers.shape, name)
    require_same_weights(neurons, model.weights, name)
    require_mergeable(model.lm.model, model.layers)
    merge_factors(model.layers, rounded_factors(factors, model.weights.dtype))
    return model


def _write(files: Mapping[str, str | bytes], folder: Path) -> None:
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)


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
