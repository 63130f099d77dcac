"""The recipes that come with the package, by their names."""

from __future__ import annotations

from pathlib import Path

#: In an installed package beside this room; in a clone at its top.
_PLACES = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes")


def recipes_at_hand() -> dict[str, Path]:
    """Name → file of every recipe that comes with the package; a name is the file's, without its suffix."""
    root = next((place for place in _PLACES if (place / "quickstart.yaml").is_file()), None)
    return {} if root is None else {path.stem: path for path in sorted(root.rglob("*.yaml"))}


def summary_of(path: Path) -> str:
    """What the first comment of a recipe says of it, on one line.

    Args:
        path: of the file.
    """
    said = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        said.append(line[2:].strip())
        if line.endswith("."):
            break
    return " ".join(said)


def find_recipe(given: str | Path, folder: Path | None = None) -> Path:
    """The file that a path or a name stands for; a file that is there wins over a recipe of the same name.

    Args:
        given: a path, or the name of a recipe that comes with the package.
        folder: what a path is relative to; default: the working directory.

    Returns:
        The file. Where there is neither, the path as it is.
    """
    path = Path(given) if folder is None else folder / given
    try:
        there = path.is_file()
    except (OSError, ValueError):
        return path  # no system call takes it; whoever opens it says why
    return path if there else recipes_at_hand().get(str(given), path)
