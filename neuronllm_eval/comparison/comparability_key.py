"""Under which terms a validated run may be compared (`comparability.Terms`), from its files."""

from __future__ import annotations

import json
from typing import Any

from neuronllm_eval.attribution.methods import METHODS
from neuronllm_eval.comparison.comparability import Terms
from neuronllm_eval.errors import ArtifactError
from neuronllm_eval.evaluation.doc_ids import AskedDocs
from neuronllm_eval.formats.json_files import read_json
from neuronllm_eval.interventions.conditions import UNMASKED
from neuronllm_eval.models.fingerprints import digest, task_hash
from neuronllm_eval.neurons.neuron_set import NeuronSet
from neuronllm_eval.runs.directory import RunDirectory, read_lines
from neuronllm_eval.runs.reader import ValidationRecord
from neuronllm_eval.runs.settings import RunSettings

# Settings of a run that a method has besides its own; only attribution along a path has the first.
_PATH_SETTINGS = ("quadrature", "n_steps")
_CHOOSING_SETTINGS = ("top_z", "ambiguous", "attribution_dtype")
_AGAIN = "run validate again"
_TEMPLATES = {False: "none", True: "the model's own"}


def run_terms(
    run: RunDirectory,
    settings: RunSettings,
    neurons: NeuronSet,
    record: ValidationRecord,
    asked: AskedDocs,
) -> Terms:
    """The terms of the conditions that are no points.

    Args:
        run: the run.
        settings: its settings.
        neurons: that were chosen.
        record: of its validation.
        asked: the docs that judged.

    Raises:
        ArtifactError: the result file of the unmasked run, or `commands.jsonl`, is damaged.
    """
    known, how = neurons.provenance, record.docs.get("asked", {})
    config, lm_eval = _harness(run, settings.task)
    template = settings.apply_chat_template
    return Terms(
        split=asked.split,
        n_questions=len(asked.questions),
        question_ids=digest(json.dumps(sorted(asked.questions))),
        docs=digest(json.dumps(asked.docs)),
        n_proxies=str(how.get("n_proxies") or 1),
        orders=str(how.get("orders") or ""),
        letter_style=str(how.get("letter_style") or ""),
        n_options=str(how.get("n_options") or ""),
        distractors=str(how.get("distractors") or ""),
        num_fewshot=str(config.pop("num_fewshot", None) or 0),
        description=digest(str(config.pop("description", None) or "")),
        system_instruction=digest(settings.system_instruction or ""),
        chat_template=template if isinstance(template, str) else _TEMPLATES[template],
        multiturn=settings.fewshot_as_multiturn or not template,
        metadata=digest(json.dumps(settings.metadata, sort_keys=True, default=str)),
        task_config=task_hash(config),
        chosen_split=known.split,
        n_chosen_on=known.n_questions,
        chosen_at=known.positions,
        applied_at=record.positions,
        top_k=record.top_k,
        suppress=float(record.scales.suppress),
        enhance=float(record.scales.enhance),
        lm_eval=lm_eval,
        neuronllm_eval=_version(run) or known.tool_version,
    )


def method_settings(settings: RunSettings) -> dict[str, Any]:
    """What a run's method was set to: its own settings, and the run's that decide its neurons."""
    method = METHODS.get(settings.method)  # a method of the user's own need not be known here
    along_path = method is None or (method.quantity is not None and method.quantity.path)
    names = (*(_PATH_SETTINGS if along_path else ()), *_CHOOSING_SETTINGS)
    return {name: getattr(settings, name) for name in names} | dict(settings.method_args)


def _harness(run: RunDirectory, task: str) -> tuple[dict[str, Any], str]:
    """The task's configuration when it judged, and lm_eval's version."""
    path = run.result(UNMASKED)
    values = read_json(path, _AGAIN)
    configs = values.get("configs") if isinstance(values, dict) else None
    config = configs.get(task) if isinstance(configs, dict) else None
    if not isinstance(config, dict):
        raise ArtifactError(
            f"{path} has no configuration of task {task}",
            expected="a result file that this package wrote",
            remedy=_AGAIN,
        )
    return config, str(values.get("lm_eval_version"))


def _version(run: RunDirectory) -> str:
    """This package's version at the last validation; empty where the run does not say it."""
    if not run.commands.is_file():
        return ""
    found = [
        line.get("versions") for line in read_lines(run.commands) if line.get("stage") == "validate"
    ]
    versions = found[-1] if found else None
    return str(versions.get("neuronllm-eval", "")) if isinstance(versions, dict) else ""
