"""Runs and exports on the Hugging Face Hub: `hf://user/repo[@revision][/folder]`, and pushing.

What is read is pinned: a name stands for the commit that it was found at. What is pushed is one
commit, which also removes what an earlier push left and this one does not have. No module but this
one talks to the Hub of its own accord.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
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
# Above `HfHubHTTPError` stands the error of the HTTP client, httpx or httpx2 as huggingface_hub's
# version has it: refused connections and timeouts come as that.
_HTTP_ERRORS: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__mro__ if issubclass(base, Exception) and base is not Exception
)
# What the Hub's client raises for what a user, the network or the server did. An upload of large
# files that fails is a RuntimeError.
_FAILURES: tuple[type[Exception], ...] = (
    *_HTTP_ERRORS,
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
        """Take `hf://user/repo[@revision][/folder]` apart.

        Raises:
            UsageError: it has another form.
        """
        found = _REFERENCE.fullmatch(text)
        folder = (found["folder"] or "").strip("/") if found else ""
        if found is None or not is_repo_id(found["repo"]) or ".." in folder.split("/"):
            raise UsageError(
                f"{text!r:.200} names no repository",
                expected="hf://user/repo, hf://user/repo@revision, or either with /folder",
                remedy="check neurons in --model_args",
            )
        return cls(found["repo"], found["revision"], folder)

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{SCHEME}{self.repo_id}{revision}" + (f"/{self.folder}" if self.folder else "")


@dataclass(frozen=True)
class Fetched:
    """A file of the Hub on this machine.

    Attributes:
        path: of the local copy.
        source: where it is from, by commit.
    """

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
            expected="a run that `neuronllm-eval push` has put there",
            remedy="check the name, the revision and the network; a private repository needs "
            "`hf auth login`, and a push of several runs the name of one: hf://user/repo/TASK",
        ) from error
    # The cache keeps a file under the commit that a name stood for: snapshots/<commit>/<name>.
    commit = path.parts[-len(Path(name).parts) - 1]
    if not _COMMIT.fullmatch(commit):
        raise ArtifactError(
            f"{path} does not say of which commit it is",
            expected="the Hub's cache, where files lie in snapshots/COMMIT",
            remedy="unset what changes the cache's layout, such as HF_HUB_CACHE",
        )
    return Fetched(path, Reference(reference.repo_id, commit, reference.folder))


def push_files(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    is_ours: Callable[[str], bool],
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
) -> Reference:
    """Put files into a repository, which is made if need be, in one commit.

    Args:
        repo_id: `user/repo`.
        files: by name in the repository.
        is_ours: which other files of the repository an earlier push left; they are removed.
        message: of the commit.
        private: whether a new repository is private; the account's default if None.
        revision: branch, made if need be; the main one if None.

    Returns:
        The repository at the new commit.

    Raises:
        ArtifactError: the Hub refuses or cannot be reached.
        UsageError: `repo_id` is no name of a repository.
    """
    if not (is_repo_id(repo_id) and "/" in repo_id):
        raise UsageError(
            f"--repo_id {repo_id!r:.200}",
            expected="user/repo or organisation/repo",
            remedy="check --repo_id",
        )
    api = HfApi(library_name="neuronllm-eval")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.model_info(repo_id, revision=revision)
        names = [each.rfilename for each in there.siblings or []]
        stale = [name for name in names if is_ours(name) and name not in files]
        made = api.create_commit(
            repo_id,
            operations=[
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(name, content) for name, content in files.items()),
            ],
            commit_message=message,
            revision=revision,
            parent_commit=there.sha,
        )
    except _FAILURES as error:
        raise ArtifactError(
            f"{repo_id} cannot be pushed to: {_reason(error)}",
            expected="a repository that you may write, on a Hub that can be reached",
            remedy="log in with `hf auth login`, check --repo_id and the network, and repeat the "
            "command: the repository or branch may have been made, but its files change all at "
            "once or not at all",
        ) from error
    return Reference(repo_id, made.oid)


def is_repo_id(text: str) -> bool:
    """Whether a name has the form that a repository's on the Hub has."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """The first line of an error, and of what led to it where the error itself does not say."""
    lines = str(error).strip().splitlines()
    said = lines[0].rstrip(".") if lines else type(error).__name__
    if error.__cause__ is None or isinstance(error, HfHubHTTPError):
        return said
    return f"{said}: {_reason(error.__cause__)}"
