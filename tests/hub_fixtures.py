"""The Hub played by a folder, as the client's functions or as a server that the client talks to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub.errors import LocalEntryNotFoundError


class FakeHub:
    """Repositories as folders: every commit is a whole copy, as in the cache of the real one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.branches: dict[tuple[str, str], str] = {}
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

    def upload(self, repo_id: str, folder: Path, inside: str = "", branch: str = "main") -> str:
        """The commit that `hf upload REPO_ID FOLDER INSIDE` makes."""
        parent = self.branches.get((repo_id, branch))
        files = self.files(repo_id, parent) if parent else {}
        prefix = f"{inside}/" if inside else ""
        for path in folder.rglob("*"):
            if path.is_file():
                files[prefix + path.relative_to(folder).as_posix()] = path.read_bytes()
        return self._commit(repo_id, branch, files)

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
    """The few calls of the Hub's protocol that a download makes, on this machine only.

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

    def log_message(self, *_: object) -> None:
        """Tests read `asked`."""

    def _serve(self) -> None:
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
        else:
            self._answer({"error": line}, 404)

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
