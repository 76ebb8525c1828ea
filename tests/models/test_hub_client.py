"""The Hub through its real client, which talks to a small server: pushing, fetching, failures."""

from __future__ import annotations

from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http, close_session

from neuronllm_eval.models import hub
from neuronllm_eval.models.hub import Reference
from tests.fixtures.cli import assert_one_message, call, finished_run
from tests.fixtures.hub import FakeHub, HubServer

REPO = "user/neurons"
PUSH = ("--repo_id", REPO)
FETCH = f"pretrained=m,condition=degrade,neurons=hf://{REPO}"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[HubServer]:
    """A server that the client takes for the Hub, and an empty cache for what it downloads."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between tries
    with HubServer(FakeHub(tmp_path / "hub")) as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        yield server
    close_session()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client wait for a fraction of a second only."""
    huggingface_hub.get_session().timeout = 0.3
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.3, raising=False)


def pushed(*more: object) -> Reference:
    code, out, err = call("push", finished_run().path, *PUSH, *more)
    assert code == 0, err
    return Reference.parse(out.split()[-1])


def fetching() -> tuple[int, str, str]:
    """Read neurons from the Hub as `run` does."""
    return call("run", "--model", "neuronllm", "--tasks", "demo_topic", "--model_args", FETCH)


def test_a_push_is_one_commit_of_the_right_files(server):
    run = finished_run()
    made = pushed("--private")
    assert server.folder.private == {REPO: True}
    assert made.revision == server.folder.branches[REPO, "main"]
    assert [line for line in server.asked if "/commit/" in line] == [
        f"POST /api/models/{REPO}/commit/main"
    ]
    files = server.folder.files(REPO, made.revision)
    for path in (run.neurons, run.scores, run.settings, *(run.path / "results").iterdir()):
        assert files[path.relative_to(run.path).as_posix()] == path.read_bytes()
    assert b"library_name: neuronllm-eval" in files["README.md"]
    assert ".lock" not in files


def test_a_second_push_removes_what_the_first_left(server):
    first = pushed("--revision", "v 1/x")
    folder = server.folder
    assert first.revision == folder.branches[REPO, "v 1/x"] != folder.branches[REPO, "main"]
    left = {"results/old.json": b"{}", "notes.txt": b"mine"}
    folder._commit(REPO, "v 1/x", {**folder.files(REPO, first.revision or ""), **left})
    second = folder.files(REPO, pushed("--revision", "v 1/x").revision or "")
    assert second == {**folder.files(REPO, first.revision or ""), "notes.txt": b"mine"}


def test_what_is_fetched_is_pinned_to_its_commit(server):
    made = pushed("--revision", "v1")
    neurons = finished_run().neurons.read_bytes()
    for revision in ("v1", made.revision):
        found = hub.fetch(Reference(REPO, revision), "neurons.json")
        assert found.source == made
        assert found.path.read_bytes() == neurons
    files = server.folder.files(REPO, made.revision or "")
    server.folder._commit(REPO, "v1", {**files, "neurons.json": b"{}"})
    assert hub.fetch(Reference(REPO, "v1"), "neurons.json").source != made
    assert hub.fetch(made, "neurons.json").path.read_bytes() == neurons


def test_what_is_not_there_is_named(server):
    pushed("--revision", "v1")
    assert_one_message(fetching(), 1, f"hf://{REPO} has no neurons.json that can be read: 404")


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "401 Unauthorized"), (503, "503 Service Unavailable"), (None, "timed out")],
)
@pytest.mark.parametrize("where", ["/api/repos/create", "/preupload/", "/commit/"])
def test_a_push_that_fails_says_so_and_changes_no_file(server, monkeypatch, where, status, said):
    impatient(monkeypatch)
    server.trouble[where] = status
    result = call("push", finished_run().path, *PUSH)
    assert_one_message(result, 1, f"{REPO} cannot be pushed to: ", said, "change all at once")
    made = {} if where == "/api/repos/create" else {".gitattributes": b""}
    branch = server.folder.branches.get((REPO, "main"), "")
    assert server.folder.files(REPO, branch) == made


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "401 Unauthorized"), (403, "403 Forbidden"),
        (503, "503 Service Unavailable"), (None, "timed out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["HEAD ", "GET "])
def test_a_fetch_that_fails_says_so(server, monkeypatch, where, status, said):
    pushed()
    impatient(monkeypatch)
    server.trouble[where] = status
    assert_one_message(
        fetching(), 1, f"hf://{REPO} has no neurons.json that can be read: ", said, "hf auth login"
    )


def test_without_a_hub_there_is_one_message(server):
    server.__exit__()
    result = call("push", finished_run().path, *PUSH)
    assert_one_message(result, 1, f"{REPO} cannot be pushed to: ", "Connection refused")
    assert_one_message(fetching(), 1, "on the Hub", "Connection refused")
