"""The Hub through its real client, which talks to a small server: fetching, failures."""

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


def uploaded(server: HubServer, branch: str = "v1") -> str:
    return server.folder.upload(REPO, finished_run().path, branch=branch)


def fetching() -> tuple[int, str, str]:
    """Read neurons from the Hub as `run` does."""
    return call("run", "--model", "neuronllm", "--tasks", "demo_topic", "--model_args", FETCH)


def test_what_is_fetched_is_pinned_to_its_commit(server):
    made = Reference(REPO, uploaded(server))
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
    uploaded(server)
    assert_one_message(fetching(), 1, f"hf://{REPO} has no neurons.json that can be read: 404")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "401 Unauthorized"), (403, "403 Forbidden"),
        (503, "503 Service Unavailable"), (None, "timed out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["HEAD ", "GET "])
def test_a_fetch_that_fails_says_so(server, monkeypatch, where, status, said):
    uploaded(server, "main")
    impatient(monkeypatch)
    server.trouble[where] = status
    assert_one_message(
        fetching(), 1, f"hf://{REPO} has no neurons.json that can be read: ", said, "hf auth login"
    )


def test_without_a_hub_there_is_one_message(server):
    server.__exit__()
    assert_one_message(fetching(), 1, "on the Hub", "Connection refused")
