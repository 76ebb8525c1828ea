"""`neuronllm-eval export`: a condition of a run as a PEFT adapter or a merged checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neuronllm_eval.cli import arguments
from neuronllm_eval.errors import UsageError
from neuronllm_eval.export.adapter_folder import adapter_files, require_plain_model
from neuronllm_eval.export.ia3_adapter import ia3_site, rounded_factors
from neuronllm_eval.export.manifest import EXPORT_FILE, FORMATS, Export
from neuronllm_eval.export.merged_checkpoint import (
    merge_factors,
    require_mergeable,
    save_checkpoint,
)
from neuronllm_eval.export.model_card import Figures, adapter_card
from neuronllm_eval.export.validated_figures import judged_figures
from neuronllm_eval.formats.atomic_folder import require_free_folder, whole_folder
from neuronllm_eval.interventions.conditions import CONDITIONS, UNMASKED, ConditionName
from neuronllm_eval.masked_lm.model_args import chosen_neurons, resolve_scales
from neuronllm_eval.models.compatibility import require_same_shape, require_same_weights
from neuronllm_eval.models.ffn_layers import find_ffn_layers
from neuronllm_eval.models.meta_model import model_skeleton
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.directory import CARD_FILE, RunDirectory, find_runs
from neuronllm_eval.runs.reader import load_neurons, load_scores
from neuronllm_eval.runs.settings import RunSettings
from neuronllm_eval.stages.load_model import load_model


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `export`; those of a condition carry the names of `neuronllm`'s model arguments."""
    what = parser.add_argument_group("what to export")
    what.add_argument(
        "--condition",
        required=True,
        help=f"of {', '.join(name for name in CONDITIONS if name != UNMASKED)}; a point such as "
        "suppress_good.k50.x0.5; or either with .random_SEED",
    )
    what.add_argument("--scale", type=float, help="factor of the condition's only operation")
    what.add_argument("--suppress_scale", type=float, help="factor of suppressing (default: 0)")
    what.add_argument("--enhance_scale", type=float, help="factor of enhancing (default: 2)")
    what.add_argument(
        "--top_k", type=int, help="use the first so many good and bad neurons (default: all)"
    )
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--format",
        choices=FORMATS,
        default="peft",
        help="an IA3 adapter, or a full checkpoint (default: peft)",
    )
    where.add_argument(
        "--output_path", "-o", required=True, type=arguments.a_path, help="folder to make"
    )
    where.add_argument(
        "--overwrite", action="store_true", help="replace an export that is there already"
    )
    where.add_argument(
        "--device", default="cpu", help="where a merged checkpoint is computed (default: cpu)"
    )
    arguments.add_verbosity(parser)


def export(options: argparse.Namespace, show: Callable[[str], object]) -> int:
    """Write the export that parsed flags ask for; returns the exit code.

    Raises:
        NeuronLLMError: flags, the run, the model or the output folder cannot be used; then nothing
            is written.
    """
    output = Path(options.output_path)
    if ConditionName.parse(options.condition, "--condition").condition == UNMASKED:
        raise UsageError(
            f"--condition {options.condition}",
            expected="a condition that changes something",
            remedy=f"choose of {', '.join(name for name in CONDITIONS if name != UNMASKED)}",
        )
    scales = resolve_scales(
        options.condition,
        options.scale,
        options.suppress_scale,
        options.enhance_scale,
        "--condition",
    )
    run = _only_run(Path(options.run_dir))
    settings = RunSettings.load(run.settings)
    arguments.require_trust(settings, options.trust_remote_code)
    require_free_folder(output, EXPORT_FILE, options.overwrite)
    require_plain_model(settings.model_args)
    found = load_neurons(run, settings)
    load_scores(run, found)  # of the same run, or refused
    neurons = chosen_neurons(found, options.condition, options.top_k)
    assert neurons is not None
    made, factors = Export.of(neurons, options.condition, scales, options.format)
    figures = judged_figures(run, made)
    if options.format == "peft":
        _write_adapter(made, factors, neurons, settings, figures, output)
    else:
        on_device = dataclasses.replace(settings, device=options.device, batch_size=1)
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
