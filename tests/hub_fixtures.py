"""The Hub played by a folder, as the client's functions or as a server that the client talks to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import LocalEntryNotFoundError


class FakeHub:
    """Repositories as folders: every commit is a whole copy, as in the cache of the real one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.branches: dict[tuple[str, str], str] = {}
        self.private: dict[str, bool | None] = {}
        self.refused: Exception | None = None

    def snapshot(self, repo_id: str, commit: str) -> Path:
        return self.path / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit

    def download(self, repo_id: str, filename: str, *, revision: str | None) -> str:
        if self.refused:
            raise self.refused
        commit = self.branches.get((repo_id, revision or "main"), revision or "")
        path = self.snapshot(repo_id, commit) / filename
        if not path.is_file():
            raise LocalEntryNotFoundError(f"{filename} is neither cached nor on the Hub")
        return str(path)

    # As `HfApi` has them.

    def __call__(self, **_: object) -> FakeHub:
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        assert exist_ok
        if self.refused:
            raise self.refused
        if (repo_id, "main") not in self.branches:
            self.private[repo_id] = private
            self._commit(repo_id, "main", {".gitattributes": b""})

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        self.branches.setdefault((repo_id, branch), self.branches[repo_id, "main"])

    def model_info(self, repo_id: str, *, revision: str | None) -> SimpleNamespace:
        sha = self.branches[repo_id, revision or "main"]
        names = sorted(self.files(repo_id, sha))
        return SimpleNamespace(sha=sha, siblings=[SimpleNamespace(rfilename=n) for n in names])

    def create_commit(self, repo_id, operations, *, commit_message, revision, parent_commit):
        assert commit_message
        branch = revision or "main"
        assert parent_commit == self.branches[repo_id, branch]
        files = self.files(repo_id, parent_commit)
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del files[operation.path_in_repo]
            else:
                assert isinstance(operation, CommitOperationAdd)
                with operation.as_file() as file:
                    files[operation.path_in_repo] = file.read()
        return SimpleNamespace(oid=self._commit(repo_id, branch, files))

    def files(self, repo_id: str, commit: str) -> dict[str, bytes]:
        below = self.snapshot(repo_id, commit)
        found = (path for path in below.rglob("*") if path.is_file())
        return {path.relative_to(below).as_posix(): path.read_bytes() for path in found}

    def _commit(self, repo_id: str, branch: str, files: dict[str, bytes]) -> str:
        content = repr((sorted(files.items()), self.branches)).encode()
        commit = hashlib.sha1(content).hexdigest()
        for name, data in files.items():
            path = self.snapshot(repo_id, commit) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.branches[repo_id, branch] = commit
        return commit


class HubServer(ThreadingHTTPServer):
    """The few calls of the Hub's protocol that a push and a fetch make, on this machine only.

    Every file is a regular one: the storage of large files has a protocol of its own.

    Attributes:
        folder: holds the repositories.
        asked: method and path of every request, in order.
        trouble: for a part of such a line, the status to answer with; None never answers.
    """

    daemon_threads = True

    def __init__(self, folder: FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _HubRequest)
        self.folder = folder
        self.asked: list[str] = []
        self.trouble: dict[str, int | None] = {}
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _HubRequest(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Tests read `asked`."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        line = f"{self.command} {path}"
        self.server.asked.append(line)
        for part, status in self.server.trouble.items():
            if part in line:
                if status is None:
                    self.server.closing.wait()
                else:
                    self._answer({"error": "so the test wants it"}, status)
                return
        if found := re.fullmatch(r"/(.+?/.+?)/resolve/(.+?)/(.+)", path):
            self._file(*map(unquote, found.groups()))
        elif path == "/api/validate-yaml":
            self._answer({})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}"
            private = {"private": True, "public": False}.get(
                asked.get("visibility"), asked.get("private")
            )
            self.server.folder.create_repo(repo_id, private=private, exist_ok=True)
            self._answer({"url": f"{self.server.url}/{repo_id}"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]+))?", path):
            repo_id, call, revision = found[1], found[2] or "revision", unquote(found[3] or "main")
            if (repo_id, "main") in self.server.folder.branches:
                self._answer(getattr(self, f"_{call}")(repo_id, revision, body))
            else:
                self._answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        else:
            self._answer({"error": line}, 404)

    def _branch(self, repo_id: str, branch: str, _: bytes) -> dict[str, Any]:
        self.server.folder.create_branch(repo_id, branch=branch, exist_ok=True)
        return {}

    def _revision(self, repo_id: str, revision: str, _: bytes) -> dict[str, Any]:
        info = self.server.folder.model_info(repo_id, revision=revision)
        return {"id": repo_id, "sha": info.sha, "siblings": [vars(each) for each in info.siblings]}

    def _preupload(self, _: str, __: str, body: bytes) -> dict[str, Any]:
        paths = [file["path"] for file in json.loads(body)["files"]]
        kind = {"uploadMode": "regular", "shouldIgnore": False}
        return {"files": [{"path": path, **kind} for path in paths]}

    def _commit(self, repo_id: str, revision: str, body: bytes) -> dict[str, Any]:
        header, *lines = [json.loads(line) for line in body.splitlines()]
        made = self.server.folder.create_commit(
            repo_id,
            [_operation(line["key"], line["value"]) for line in lines],
            commit_message=header["value"]["summary"],
            revision=revision,
            parent_commit=header["value"]["parentCommit"],
        )
        return {
            "commitUrl": f"{self.server.url}/{repo_id}/commit/{made.oid}",
            "commitOid": made.oid,
        }

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        folder = self.server.folder
        commit = folder.branches.get((repo_id, revision), revision)
        path = folder.snapshot(repo_id, commit) / name
        if not path.is_file():
            self._answer({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        tag = hashlib.sha1(path.read_bytes()).hexdigest()
        self._answer(path.read_bytes(), 200, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'})

    def _answer(self, content: object, status: int = 200, headers: Any = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _operation(key: str, value: dict[str, str]) -> CommitOperationAdd | CommitOperationDelete:
    if key == "deletedFile":
        return CommitOperationDelete(value["path"])
    assert key == "file", key
    return CommitOperationAdd(value["path"], base64.b64decode(value["content"]))
