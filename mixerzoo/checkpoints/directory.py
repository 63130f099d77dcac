"""A checkpoint's new directory, which appears whole or not at all, and the files that travel with weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixerzoo import files
from mixerzoo.checkpoints.layout import is_file, read_json
from mixerzoo.data.chat_template import TEMPLATE_FOLDER
from mixerzoo.data.tokenizer_files import read_tokenizer
from mixerzoo.errors import CheckpointError

#: What transformers writes beside the weights: the tokenizer, and how to generate.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
#: Several times what the largest vocabularies take.
_MOST_BYTES = 256 << 20
#: Those of them whose content is an object of a few levels; a tokenizer and a vocabulary may be larger.
_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")


def check_new(directory: Path) -> None:
    """Refuse a path that is taken or that nobody could write to, before minutes are spent on what would go there.

    Raises:
        CheckpointError: something is there.
        OSError: its directory, or the nearest one above that there is, cannot be written.
    """
    if directory.exists() or directory.is_symlink():
        raise CheckpointError(f"{directory} exists already, and nothing is overwritten; choose another with --out")
    above = next(path for path in directory.absolute().parents if path.exists())
    if not above.is_dir():
        raise CheckpointError(f"{directory}: {above} is a file; choose another place with --out")
    files.check_writable(above / directory.name)


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A hidden sibling to write into, which gets its name when the block ends without an error.

    Args:
        directory: must not exist; its parents are made where they are missing.

    Raises:
        CheckpointError: something is there.
        OSError: it cannot be written.
    """
    check_new(directory)
    missing = [path for path in directory.parents if not path.exists()]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with files.new_directory(directory) as partial:
            yield partial
            check_new(directory)
    except BaseException:
        for made in missing:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        raise


def find_companions(source: Path) -> list[str]:
    """The tokenizer's files and those that say how to generate, looked at before anything is written.

    Args:
        source: a checkpoint's directory.

    Returns:
        The names of those that there are.

    Raises:
        CheckpointError: one is no file, is damaged, or is a link to something outside.
        DataError: the tokenizer is damaged.
    """
    found = [name for name in COMPANIONS if is_file(source / name)]
    templates = sorted((source / TEMPLATE_FOLDER).glob("*.jinja"))
    if templates:
        _refuse_link_outside(source, TEMPLATE_FOLDER)
    found += [f"{TEMPLATE_FOLDER}/{path.name}" for path in templates if is_file(path)]
    for name in found:
        _refuse_link_outside(source, name)
        if name in _OBJECTS:
            read_json(source / name)
        elif name == "tokenizer.json":
            read_tokenizer(source / name)
    return found


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files and those that say how to generate.

    Args:
        source: a checkpoint's directory.
        target: where to.

    Returns:
        The names of those that there are.

    Raises:
        CheckpointError, DataError: as `find_companions`.
        OSError: one cannot be read or written.
    """
    found = find_companions(source)
    for name in found:
        (target / name).parent.mkdir(exist_ok=True)
        files.write_bytes(target / name, files.read_bytes(source / name, _MOST_BYTES))
    return found


def _refuse_link_outside(source: Path, name: str) -> None:
    """Refuse to carry over, and with the checkpoint perhaps to publish, what is not part of the source.

    The cache of the Hugging Face hub is the exception: there, every file is a link to one beside the snapshots.
    """
    path = source / name
    if not path.is_symlink():
        return
    home, end = source.resolve(), path.resolve()
    store = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not end.is_relative_to(home) and not end.is_relative_to(store):
        raise CheckpointError(
            f"{path}: is a link to {os.readlink(path)}, outside of the checkpoint; put the file itself there if it "
            "belongs to it"
        )
