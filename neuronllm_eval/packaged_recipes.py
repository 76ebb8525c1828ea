"""Files for `--config` that come with the package: inside an installed wheel, or beside it."""

from __future__ import annotations

from pathlib import Path

FOLDER = "recipes"
_PACKAGE_DIR = Path(__file__).resolve().parent


def recipes() -> dict[str, Path]:
    """The packaged recipes by name, such as `paper`."""
    folders = (_PACKAGE_DIR.parent / FOLDER, _PACKAGE_DIR / FOLDER)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def config_path(given: str) -> Path:
    """The file that `--config` names: one that is there, or a packaged recipe.

    Args:
        given: a path; of a recipe its name, also as `recipes/NAME.yaml`.
    """
    path = Path(given)
    if path.is_file() or path.parent not in (Path(), Path(FOLDER)):
        return path
    return recipes().get(path.name.removesuffix(".yaml"), path)
