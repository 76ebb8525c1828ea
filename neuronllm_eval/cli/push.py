"""`neuronllm-eval push`: a run, several runs, or an export onto the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from neuronllm_eval.cli.commands import PushSettings
from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.export.ia3_adapter import CONFIG_FILE
from neuronllm_eval.export.manifest import EXPORT_FILE, Export
from neuronllm_eval.export.model_card import CARD_FILE, index_card, run_card
from neuronllm_eval.models.hub import Reference, push_files
from neuronllm_eval.runs.directory import (
    ADAPTERS_FOLDER,
    RESULTS_FOLDER,
    RunDirectory,
    find_runs,
)
from neuronllm_eval.runs.reader import load_neurons, load_scores
from neuronllm_eval.runs.settings import SECRETS, RunSettings

Files = dict[str, Path | bytes]


def push(options: PushSettings, show: Callable[[str], object]) -> int:
    """Push what parsed flags name; returns the exit code.

    Raises:
        NeuronLLMError: it is damaged or holds a secret, or the Hub refuses it.
    """
    path = options.path
    found = (
        (_export_files(path), _is_of_an_export)
        if (path / EXPORT_FILE).is_file()
        else _run_files(find_runs(path), options.repo_id)
    )
    files, is_ours = found
    pushed = push_files(
        options.repo_id,
        files,
        is_ours,
        message=f"neuronllm-eval push of {len(files)} files",
        private=options.private or None,
        revision=options.revision,
    )
    show(f"pushed {len(files)} files to {pushed}")
    return 0


# Exports ------------------------------------------------------------------------------------------


def _export_files(path: Path) -> Files:
    Export.load(path)
    found = [each for each in sorted(path.iterdir()) if not each.name.startswith(".")]
    return {each.name: each for each in _plain(each for each in found if not each.is_dir())}


def _is_of_an_export(name: str) -> bool:
    """Whether an earlier push of an export may have left a file: weights, and what points there."""
    endings = (".safetensors", ".safetensors.index.json")
    return "/" not in name and (name.endswith(endings) or name == CONFIG_FILE)


# Runs ---------------------------------------------------------------------------------------------


def _run_files(runs: list[RunDirectory], repo_id: str) -> tuple[Files, Callable[[str], bool]]:
    """What is pushed of runs, each in a folder of its own where there are several."""
    alone = len(runs) == 1
    files: Files = {}
    prefixes = []
    for run in runs:
        folder = "" if alone else run.path.name
        prefix = f"{folder}/" if folder else ""
        prefixes.append(prefix)
        where = str(Reference(repo_id, folder=folder))
        files |= {f"{prefix}{name}": content for name, content in _files_of(run, where).items()}
    if not alone:
        files[CARD_FILE] = index_card([run.path.name for run in runs]).encode()

    def is_ours(name: str) -> bool:
        for run, prefix in zip(runs, prefixes, strict=True):
            own = name.removeprefix(prefix)
            known = {path.name for path in run.artifacts}
            if name.startswith(prefix) and (own in known or _lies_in_ours(own)):
                return True
        return False

    return files, is_ours


def _lies_in_ours(name: str) -> bool:
    return name.split("/")[0] in (RESULTS_FOLDER, ADAPTERS_FOLDER) and "/" in name


def _files_of(run: RunDirectory, where: str) -> Files:
    """The artifacts of one run and a card, by name.

    Command lines (`commands.jsonl`) and unfinished work stay here.
    """
    settings = RunSettings.load(run.settings)
    if secret := next((name for name in SECRETS if settings.model_args.get(name)), None):
        raise UsageError(
            f"{run.settings} has {secret}= among the model arguments",
            expected="a run whose files may be seen by others",
            remedy=f"log in with `hf auth login`, and run identify again without {secret}=",
        )
    neurons = load_neurons(run, settings)
    load_scores(run, neurons)  # of the same run, or refused
    found = [path for path in run.artifacts if path.exists()]
    found += sorted((run.path / RESULTS_FOLDER).glob("*.json"))
    found += sorted((run.path / ADAPTERS_FOLDER).glob("*/*"))
    files: Files = {path.relative_to(run.path).as_posix(): path for path in _plain(found)}
    report = run.report.read_text("utf-8") if run.report.is_file() else ""
    files[CARD_FILE] = run_card(neurons.provenance, where, report).encode()
    return files


def _plain(paths: Iterable[Path]) -> list[Path]:
    """The paths; ArtifactError if one is no file, or a link to what lies elsewhere."""
    found = list(paths)
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(
                f"{path} is a link, or no file",
                expected="files as this package writes them",
                remedy="look where it leads, and remove it",
            )
    return found
