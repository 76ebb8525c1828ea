"""The Hub, played by a folder: what is uploaded, reading by commit, and what can go wrong.

Only `hub.hf_hub_download` is replaced; files lie as in the Hub's own cache.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import lm_eval
import pytest
from huggingface_hub.errors import RevisionNotFoundError
from lm_eval.tasks import TaskManager

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.export.model_card import is_hub_model
from neuronllm_eval.formats.inert_text import SECRETS
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models import hub
from neuronllm_eval.models.hub import Reference
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import assert_one_message, call, copy_of, finished_run
from tests.fixtures.harness import include_paths, model_dir
from tests.fixtures.hub import FakeHub

REPO = "user/neurons"


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "hf_hub_download", fake.download)
    return fake


@pytest.fixture
def copied(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "copy" / "demo_topic")


# Uploading --------------------------------------------------------------------------------------


def test_a_run_directory_is_a_model_repository_as_it_is():
    run = finished_run()
    card = run.card.read_text()
    assert card.startswith("---\nlibrary_name: neuronllm-eval\n")  # no base_model: it is a path
    assert "neurons=hf://USER/REPO,condition=enhance" in card
    assert run.report.read_text() in card


def test_push_names_the_command_that_took_its_place():
    result = call("push", "runs/demo", "--repo_id", REPO)
    assert_one_message(result, 2, "no longer a command", "run `hf upload USER/REPO DIR . ")


def test_no_file_of_a_run_holds_an_access_token(tmp_path):
    flags = ("--tasks", "demo_topic", "--limit", 4, "--batch_size", 4, "--output_path", tmp_path)
    secrets = {name: f"hf_of_{name}" for name in SECRETS[:1]}
    given = ",".join(f"{name}={value}" for name, value in secrets.items())
    code, _, err = call("identify", *flags, "--model_args", f"pretrained={model_dir()},{given}")
    assert code == 0, err
    code, _, err = call("validate", tmp_path, "--conditions", "degrade", "--n_random", 0)
    assert code == 0, err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.yaml", "neurons.json", "degrade.json", "README.md"} <= {x.name for x in files}
    assert [path for path in files if b"hf_of_" in path.read_bytes()] == []
    # The same command again, with and without the token: its neurons are kept.
    for model_args in (f"pretrained={model_dir()},{given}", f"pretrained={model_dir()}"):
        code, _, err = call("identify", *flags, "--resume", "--model_args", model_args)
        assert code == 0, err


# Reading ----------------------------------------------------------------------------------------


def test_neurons_of_the_hub_are_pinned_in_the_results(fake):
    run = finished_run()
    commit = fake.upload(REPO, run.path)
    answers = {}
    for neurons in (str(run.path), f"hf://{REPO}", f"hf://{REPO}@{commit}"):
        answers[neurons] = lm_eval.simple_evaluate(
            "neuronllm",
            model_args=f"pretrained={model_dir()},neurons={neurons},condition=suppress_good",
            tasks=["demo_topic"], limit=6, device="cpu", batch_size=6, bootstrap_iters=0,
            task_manager=TaskManager(include_path=include_paths(), include_defaults=False),
        )  # fmt: skip
    local, *pinned = answers.values()
    assert "neurons" not in local["config"]["neuronllm"]
    for found in pinned:
        assert found["config"]["neuronllm"]["neurons"] == f"hf://{REPO}@{commit}"
        assert found["results"] == local["results"]
        assert json.dumps(found["config"]["neuronllm"])


def test_a_revision_stays_what_it_was(fake, copied):
    first = Reference(REPO, fake.upload(REPO, copied.path))
    copied.neurons.write_text(copied.neurons.read_text() + " ")
    second = Reference(REPO, fake.upload(REPO, copied.path))
    assert hub.fetch(Reference(REPO), "neurons.json").source == second
    assert hub.fetch(first, "neurons.json").source == first
    assert not hub.fetch(first, "neurons.json").path.read_text().endswith(" ")


def test_several_runs_lie_side_by_side(fake, copied):
    commit = fake.upload(REPO, copied.path.parent, branch="v1")
    lm = NeuronMaskedLM(
        str(model_dir()), f"hf://{REPO}@v1/demo_topic", "enhance", device="cpu", batch_size=4
    )
    assert lm.options.source == f"hf://{REPO}@{commit}/demo_topic"


def test_what_cannot_be_read(fake):
    with pytest.raises(ArtifactError, match=r"hf://user/neurons has no neurons\.json"):
        hub.fetch(Reference(REPO), "neurons.json")
    response = SimpleNamespace(headers={}, request=None)
    fake.refused = RevisionNotFoundError("404\nnot there", response=response)
    with pytest.raises(ArtifactError, match=r"that can be read: 404\.\n"):
        hub.fetch(Reference(REPO, "v9"), "neurons.json")


def test_a_cache_of_another_layout_is_refused(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "neurons.json"))
    with pytest.raises(ArtifactError, match="which commit it is of"):
        hub.fetch(Reference(REPO), "neurons.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", Reference("a/b")),
        ("hf://a/b/", Reference("a/b")),
        ("hf://a/b@v1", Reference("a/b", "v1")),
        ("hf://a/b@refs/pr/3/c/d", Reference("a/b", "refs/pr/3", "c/d")),
        ("hf://a/b.c-d/e", Reference("a/b.c-d", None, "e")),
    ],
)
def test_references(text, expected):
    assert Reference.parse(text) == expected
    assert Reference.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["hf://", "hf://a", "hf://a/b@", "hf://a/b/../c", "hf://a b/c", "hf://-a/b--c", "a/b"]
)
def test_what_is_no_reference(text):
    with pytest.raises(UsageError, match="names no repository"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("meta-llama/Llama-3.2-1B", True), ("gpt2", True), ("", False), ("/models/llama", False),
        ("./llama", False), ("~/llama", False), ("a/b/c", False), ("models/my llama", False),
    ],
)  # fmt: skip
def test_names_of_models_on_the_hub(name, is_one):
    assert is_hub_model(name) == is_one


def test_a_folder_that_is_there_is_no_model_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "models" / "llama").mkdir(parents=True)
    assert is_hub_model("models/llama")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_model("models/llama")
