"""Runs on the Hugging Face Hub: `hf://user/repo[@revision][/folder]`.

What is read is pinned: a name stands for the commit that it was resolved to. Uploading is left to
`hf upload`: what a run or an export writes holds no secrets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from neuronllm_eval.errors import ArtifactError, UsageError

SCHEME = "hf://"
_REFERENCE = re.compile(
    r"hf://(?P<repo>[^/@\s]+/[^/@\s]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@\s]+|[^/@\s]+))?"
    r"(?:/(?P<folder>[^@\s]*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Refused connections and timeouts raise what `HfHubHTTPError` derives from: an error of httpx or
# httpx2, by huggingface_hub's version.
_FAILURES: tuple[type[Exception], ...] = (
    *HfHubHTTPError.__bases__,
    OSError,
    ValueError,
    RuntimeError,
    EntryNotFoundError,
)


@dataclass(frozen=True)
class Reference:
    """A folder of a repository of the Hub.

    Attributes:
        repo_id: `user/repo`.
        revision: a branch, tag or commit; None for the main branch.
        folder: inside the repository, empty for its root.
    """

    repo_id: str
    revision: str | None = None
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse `hf://user/repo[@revision][/folder]`.

        Raises:
            UsageError: it has another form.
        """
        match = _REFERENCE.fullmatch(text)
        folder = (match["folder"] or "").strip("/") if match else ""
        if match is None or not is_repo_id(match["repo"]) or ".." in folder.split("/"):
            raise UsageError(
                f"{text!r:.200} names no repository",
                expected="hf://user/repo, hf://user/repo@revision, or either with /folder",
                remedy="check neurons in --model_args",
            )
        return cls(match["repo"], match["revision"], folder)

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{SCHEME}{self.repo_id}{revision}" + (f"/{self.folder}" if self.folder else "")


@dataclass(frozen=True)
class Fetched:
    """The local copy of a file of the Hub, and the commit it is from."""

    path: Path
    source: Reference


def fetch(reference: Reference, filename: str) -> Fetched:
    """A file of a repository, from the Hub or from the local cache.

    Raises:
        ArtifactError: there is no such repository, revision or file, or it cannot be reached.
    """
    name = f"{reference.folder}/{filename}" if reference.folder else filename
    try:
        path = Path(hf_hub_download(reference.repo_id, name, revision=reference.revision))
    except _FAILURES as error:
        raise ArtifactError(
            f"{reference} has no {filename} that can be read: {_reason(error)}",
            expected="a run directory that `hf upload` has put there",
            remedy="check the name, the revision and the network; a private repository needs "
            "`hf auth login`, and one with several runs the folder of one: hf://user/repo/TASK",
        ) from error
    # The cache keeps a file under the commit that a name stood for: snapshots/<commit>/<name>.
    commit = path.parts[-len(Path(name).parts) - 1]
    if not _COMMIT.fullmatch(commit):
        raise ArtifactError(
            f"{path} does not show which commit it is of",
            expected="the Hub's cache, where files lie in snapshots/COMMIT",
            remedy="unset what changes the cache's layout, such as HF_HUB_CACHE",
        )
    return Fetched(path, Reference(reference.repo_id, commit, reference.folder))


def is_repo_id(text: str) -> bool:
    """Whether a name has the form of a repository's name on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """The first line of an error, and of its cause where the error itself does not name one."""
    lines = str(error).strip().splitlines()
    message = lines[0].rstrip(".") if lines else type(error).__name__
    if error.__cause__ is None or isinstance(error, HfHubHTTPError):
        return message
    return f"{message}: {_reason(error.__cause__)}"
