"""Which folders near a path hold a certain file: what a user who missed by a level meant."""

from __future__ import annotations

from pathlib import Path

_MOST_NAMED = 5


def folders_near(path: Path, name: str) -> list[Path]:
    """Folders with a file `name`: one or two levels below `path`; else the one `path` lies in.

    Args:
        path: need not exist.
        name: of the file.
    """
    below = [
        found.parent for levels in ("*", "*/*") for found in sorted(path.glob(levels + f"/{name}"))
    ]
    above = [folder for folder in list(path.absolute().parents)[:2] if (folder / name).is_file()]
    return below or above[:1]


def one_of(folders: list[Path]) -> str:
    """Folders as an error's remedy names them."""
    names = [str(folder) for folder in folders[:_MOST_NAMED]]
    if len(folders) > _MOST_NAMED:
        names.append(f"{len(folders) - _MOST_NAMED} more")
    return ", ".join(names)
