"""The files of a checkpoint: JSON and safetensors, read only where they are files, and never anything else."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mixerzoo.errors import CheckpointError
from mixerzoo.files import read_object

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

#: What writers of shards call them.
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
#: What `torch.distributed.checkpoint` calls the parts of several processes.
_SHARE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
#: Far beyond what any checkpoint has, and still quickly read.
_MOST_BYTES = 32 << 20


def is_file(path: Path) -> bool:
    """Whether a file is there that can be read to an end; links are followed.

    Args:
        path: of the file.

    Raises:
        CheckpointError: something else is there (a directory, a pipe, a device), or nobody can tell.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise CheckpointError(f"{path}: cannot be read: {_reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: is a directory; it must be a file")
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: is a pipe, a socket or a device; it must be a file")
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file.

    Args:
        path: of the file.

    Raises:
        CheckpointError: the file or its directory is missing, it cannot be read, or it is damaged.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent}: no such directory")
    if not is_file(path):
        raise CheckpointError(f"{path.parent}: not a checkpoint: it has no {path.name}{_within(path.parent)}")
    return read_object(path, CheckpointError, most=_MOST_BYTES)


def _within(directory: Path) -> str:
    """Which checkpoints lie in a directory that is none, such as a run that is not finished; the latest first."""
    below = [*directory.glob(f"*/{CONFIG_FILE}"), *directory.glob(f"checkpoints/*/{CONFIG_FILE}")]
    found = [file.parent for file in below if (file.parent / WEIGHTS_FILE).is_file()]
    # checkpoint-12 is later than checkpoint-6.
    found.sort(key=lambda place: (len(place.name), place.name), reverse=True)
    return f"; within it there is {listed(list(map(str, found)), most=2)}" if found else ""


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by their names; memory is spent as they are used.

    Args:
        directory: the checkpoint's.

    Raises:
        CheckpointError: a file is missing, cannot be read or is damaged, or the files contradict each other.
    """
    tensors: dict[str, Tensor] = {}
    places: dict[str, Path] = {}
    files = weight_files(directory)
    for file in files:
        try:
            read = load_file(file)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {_reason(error)}") from error
        except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
            # Beside its own error, what torch makes of dtypes and sizes that it does not know.
            raise CheckpointError(f"{file}: damaged or cut short: {error}") from error
        for name in read.keys() & tensors.keys():
            raise CheckpointError(f"{file}: it has {name}, and so has {places[name].name}: which is meant is not known")
        tensors |= read
        places |= dict.fromkeys(read, file)
    if files != [directory / WEIGHTS_FILE]:
        index = directory / INDEX_FILE
        for name, file_name in _weight_map(index).items():
            if name in places and places[name].name != file_name:
                raise CheckpointError(f"{index}: {name} is not in {file_name}, but in {places[name].name}")
    return tensors


def weights_fingerprint(path: str | Path) -> str:
    """SHA-256 of the files that hold a checkpoint's weights.

    Args:
        path: the directory.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for file in weight_files(Path(path)):
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {_reason(error)}") from error
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights; all are there.

    Args:
        directory: the checkpoint's.

    Raises:
        CheckpointError: one is missing or no file, or which ones are meant is not recorded.
    """
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    files = [single]
    if is_file(index):
        shards = [directory / name for name in sorted(set(_weight_map(index).values()))]
        if not is_file(single):
            files = shards
        elif any(is_file(shard) for shard in shards if shard != single):
            raise CheckpointError(
                f"{directory}: it has {WEIGHTS_FILE}, and shards with {INDEX_FILE}: which of the two is the model is "
                "not recorded; remove the older one"
            )
    for file in files:
        if not is_file(file):
            raise CheckpointError(f"{directory}: it has no {file.name}{_what_else(directory)}")
    return files


def remove_shards(directory: Path) -> None:
    """Delete the index of a checkpoint's shards, and those of them that the directory itself holds.

    Whatever else an index names stays: only files with the names that shards have are deleted, and links never
    are.

    Args:
        directory: the checkpoint's, which has its weights in one file by now.

    Raises:
        OSError: a file cannot be deleted.
    """
    index = directory / INDEX_FILE
    if not index.exists() and not index.is_symlink():
        return
    try:
        shards = set(_weight_map(index).values())
    except CheckpointError:
        shards = set()  # it names none that could be known to be one
    index.unlink()
    for name in shards:
        shard = directory / name
        if _SHARD.fullmatch(name) and shard.is_file() and not shard.is_symlink():
            shard.unlink()


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name → name of the file that an index says it is in."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: damaged: it has no weight_map of tensor names to files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\0" in name:
            raise CheckpointError(
                f"{index}: weight_map says that {tensor} is in {name!r}; it must be a file of the same directory"
            )
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map says that {tensor} is in {name!r}; weights are read from .safetensors alone"
            )
    return weight_map


def _what_else(directory: Path) -> str:
    """What lies where weights were expected."""
    others = sorted(path.name for path in directory.glob("*.safetensors") if not path.is_dir())
    if others and all(map(_SHARE.fullmatch, others)):
        return (
            "; it has the shares of a run in the middle, which training alone reads (train … --resume): the run's own "
            "directory has the weights in one file once it is finished"
        )
    if others:
        return f"; it has {listed(others)}: rename what holds the whole model, or restore {INDEX_FILE} for shards"
    pickled = sorted(path.name for path in (*directory.glob("*.bin"), *directory.glob("*.pt*")))
    return f"; {listed(pickled)}: pickled weights are not read, convert them" if pickled else ""


def listed(names: list[str], most: int = 8) -> str:
    """Names in one line; where there are many, the first of them and how many more.

    Args:
        names: in the order in which they are shown.
        most: how many are shown.
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
