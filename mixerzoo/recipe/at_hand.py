"""The recipes that come with the package, by their names."""

from __future__ import annotations

from pathlib import Path

from mixerzoo.files import recipes_at_hand


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
