"""The Hub, played by a folder: pushing, reading back by commit, and what can go wrong.

Only `hub.HfApi` and `hub.hf_hub_download` are replaced; files lie as in the Hub's own cache.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import pytest
from huggingface_hub.errors import RevisionNotFoundError
from lm_eval.tasks import TaskManager

from neuronllm_eval.errors import ArtifactError, UsageError
from neuronllm_eval.export.model_card import is_hub_model
from neuronllm_eval.masked_lm.model import NeuronMaskedLM
from neuronllm_eval.models import hub
from neuronllm_eval.models.hub import Reference
from neuronllm_eval.runs.directory import RunDirectory
from tests.fixtures.cli import assert_one_message, call, change_settings, copy_of, finished_run
from tests.fixtures.harness import include_paths, model_dir
from tests.fixtures.hub import FakeHub

REPO = "user/neurons"
NOT_PUSHED = {".lock", "commands.jsonl", "validation_docs.jsonl"}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake)
    monkeypatch.setattr(hub, "hf_hub_download", fake.download)
    return fake


@pytest.fixture
def copied(tmp_path) -> RunDirectory:
    return copy_of(finished_run(), tmp_path / "copy" / "demo_topic")


def push(path: Path, *more: object) -> str:
    """The reference that a push says it made."""
    code, out, err = call("push", path, "--repo_id", REPO, *more)
    assert code == 0, err
    return out.split()[-1]


def names_below(path: Path) -> set[str]:
    found = (each for each in path.rglob("*") if each.is_file())
    return {each.relative_to(path).as_posix() for each in found}


# Pushing ----------------------------------------------------------------------------------------


def test_a_run_is_pushed_whole_but_for_its_command_lines(fake):
    run = finished_run()
    pushed = Reference.parse(push(run.path, "--private"))
    assert fake.private == {REPO: True}
    assert pushed.revision == fake.branches[REPO, "main"]
    files = fake.files(REPO, pushed.revision)
    assert set(files) == names_below(run.path) - NOT_PUSHED | {"README.md", ".gitattributes"}
    assert files["neurons.json"] == run.neurons.read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: neuronllm-eval\n")  # no base_model: it is a path
    assert f"neurons=hf://{REPO},condition=enhance" in card
    assert run.report.read_text() in card


def test_a_push_replaces_what_an_earlier_one_left_and_nothing_else(fake, copied):
    push(copied.path)
    fake._commit(
        REPO, "main", {**fake.files(REPO, fake.branches[REPO, "main"]), "notes.txt": b"mine"}
    )
    shutil.rmtree(copied.path / "results")
    shutil.rmtree(copied.path / "adapters" / "degrade")
    copied.conditions.unlink()
    pushed = Reference.parse(push(copied.path))
    assert set(fake.files(REPO, pushed.revision or "")) == (
        names_below(copied.path) - NOT_PUSHED | {"README.md", ".gitattributes", "notes.txt"}
    )


def test_several_runs_lie_side_by_side(fake, copied, tmp_path):
    other = copy_of(copied, copied.path.parent / "other")
    pushed = Reference.parse(push(copied.path.parent, "--revision", "v1"))
    assert pushed.revision == fake.branches[REPO, "v1"] != fake.branches[REPO, "main"]
    files = fake.files(REPO, pushed.revision)
    assert files["other/neurons.json"] == other.neurons.read_bytes()
    assert f"hf://{REPO}/demo_topic," in files["demo_topic/README.md"].decode()
    assert "[other](./other)" in files["README.md"].decode()
    lm = NeuronMaskedLM(
        str(model_dir()), f"hf://{REPO}@v1/other", "enhance", device="cpu", batch_size=4
    )
    assert lm.neurons_source == f"hf://{REPO}@{pushed.revision}/other"


def test_an_export_is_pushed_as_it_is_and_takes_an_earlier_ones_place(fake, tmp_path):
    for kind in ("peft", "merged"):
        folder = tmp_path / kind
        code, _, err = call(
            "export", finished_run().path, "--condition", "enhance", "--format", kind,
            "--output_path", folder,
        )  # fmt: skip
        assert code == 0, err
        pushed = Reference.parse(push(folder))
        files = fake.files(REPO, pushed.revision or "")
        assert set(files) == names_below(folder) | {".gitattributes"}


def test_what_is_not_pushed(fake, copied, tmp_path):
    link = copied.path / "results" / "secrets.json"
    link.symlink_to("/etc/hostname")
    repo = ("--repo_id", REPO)
    assert_one_message(call("push", copied.path, *repo), 1, "secrets.json is a link")
    link.unlink()
    assert_one_message(call("push", copied.path, "--repo_id", "neurons"), 2, "user/repo")
    assert_one_message(call("push", copied.path, "--repo_id", "a/b/c"), 2, "user/repo")
    assert_one_message(call("push", tmp_path / "none", *repo), 1, "holds no run")
    fake.refused = OSError("401 Unauthorized")
    assert_one_message(call("push", copied.path, *repo), 1, "401 Unauthorized", "hf auth login")
    fake.refused = RuntimeError("Error while uploading 'scores.safetensors' to the Hub.")
    fake.refused.__cause__ = OSError("no space there")
    assert_one_message(call("push", copied.path, *repo), 1, "to the Hub: no space there.\n")
    change_settings(copied, model_args={"pretrained": "m", "token": "hf_secret"})
    code, out, err = call("push", copied.path, *repo)
    assert_one_message((code, out, err), 2, "has token= among the model arguments")
    assert "hf_secret" not in out + err
    copied.neurons.write_text("{}")
    change_settings(copied, model_args={"pretrained": "m"})
    assert_one_message(call("push", copied.path, *repo), 1, "neurons.json")
    assert fake.branches == {}


# Reading ----------------------------------------------------------------------------------------


def test_neurons_of_the_hub_are_pinned_in_the_results(fake):
    run = finished_run()
    commit = Reference.parse(push(run.path)).revision
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
    first = Reference.parse(push(copied.path))
    copied.neurons.write_text(copied.neurons.read_text() + " ")
    second = Reference.parse(push(copied.path))
    assert first.revision != second.revision
    assert hub.fetch(Reference(REPO), "neurons.json").source == second
    assert hub.fetch(first, "neurons.json").source == first
    assert not hub.fetch(first, "neurons.json").path.read_text().endswith(" ")


def test_what_cannot_be_read(fake):
    with pytest.raises(ArtifactError, match=r"hf://user/neurons has no neurons\.json"):
        hub.fetch(Reference(REPO), "neurons.json")
    response = SimpleNamespace(headers={}, request=None)
    fake.refused = RevisionNotFoundError("404\nnot there", response=response)
    with pytest.raises(ArtifactError, match=r"that can be read: 404\.\n"):
        hub.fetch(Reference(REPO, "v9"), "neurons.json")


def test_a_cache_of_another_layout_is_refused(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "neurons.json"))
    with pytest.raises(ArtifactError, match="of which commit"):
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
