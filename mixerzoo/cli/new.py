"""`mixerzoo new`."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from mixerzoo.cli.verbosity import hint
from mixerzoo.errors import MixerzooError

#: template in mixerzoo/templates → the file that it becomes.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "mixer.py": "src/$package/__init__.py",
    "naive.py": "tests/naive_$name.py",
    "test.py": "tests/test_$name.py",
    "recipe.yaml": "recipe.yaml",
}


def command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The mixer's name in recipes, e.g. gated_sum.", show_default=False)
    ],
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Where to write it; default: ./NAME.", show_default=False),
    ] = None,
) -> None:
    """Write a package with a new mixer, ready to install, test and train.

    It holds a small mixer that works, its naive reference, its conformance test and a recipe, for you to change.
    Nothing is overwritten: the directory must be new or empty.
    """
    _check_name(name)
    target = directory if directory is not None else Path(name)
    written = _write(name, target)
    for path in written:
        typer.echo(path)
    place = shlex.quote(str(target))
    hint(f"\nNext: cd {place} && pip install -e '.[testing]' && pytest")


def _check_name(name: str) -> None:
    """Refuse a name that cannot be a mixer's and a package's.

    Raises:
        MixerzooError: says what is wrong with it.
    """
    import importlib.util
    import keyword

    if not (name.isidentifier() and name.isascii()):
        raise MixerzooError(
            f"{name!r} is not an identifier: use lower-case letters, digits and underscores, e.g. gated_sum"
        )
    if keyword.iskeyword(name):
        raise MixerzooError(f"{name!r} is a keyword of Python")
    if name != name.lower() or name.startswith("_") or name.endswith("_"):
        raise MixerzooError(
            f"{name!r}: a mixer's name is in lower case and begins and ends with a letter or a digit, "
            "so that a package can have it too"
        )
    from mixerzoo.mixer import load_registry

    taken = load_registry().entries.get(name)
    if taken is not None:
        raise MixerzooError(f"a mixer named {name!r} is installed already, by {taken.distribution} {taken.version}")
    if importlib.util.find_spec(_package(name)) is not None:
        raise MixerzooError(f"a Python package named {_package(name)!r} is installed already")


def _package(name: str) -> str:
    return f"mixerzoo_{name}"


def _write(name: str, target: Path) -> list[Path]:
    """Write the package.

    Args:
        name: of the mixer.
        target: a directory that is new or empty.

    Returns:
        The files.

    Raises:
        MixerzooError: the directory holds something, or cannot be written.
    """
    from string import Template

    from mixerzoo.version import __version__

    words = name.split("_")
    values = {
        "name": name,
        "package": _package(name),
        "distribution": _package(name).replace("_", "-"),
        "class_name": "".join(map(str.capitalize, words)) + "Mixer",
        "title": " ".join(words).capitalize(),
        "version": __version__,
    }
    templates = files("mixerzoo.cli") / "templates"
    written = []
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            what = "is not empty" if target.is_dir() else "is a file"
            raise MixerzooError(f"{target} {what}; nothing was written. Choose another place with --dir")
        for template, path in _FILES.items():
            text = (templates / f"{template}.tmpl").read_text(encoding="utf-8")
            file = target / Template(path).substitute(values)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8") as stream:
                stream.write(Template(text).substitute(values))
            written.append(file)
    except OSError as error:
        raise MixerzooError(f"{error.filename or target} cannot be written: {error.strerror}") from error
    return written
