"""The checkpoints of a run: which there are, which are whole, and which are kept.

A checkpoint is a folder ``checkpoint-STEP`` that appears in one rename, with a manifest of its files, the run that it
belongs to and its step. So one that was cut off, damaged, renamed or copied from elsewhere is told apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mixerzoo import files
from mixerzoo.data import verified_once
from mixerzoo.errors import CheckpointError, RunError
from mixerzoo.files import MANIFEST_FILE, difference, read_manifest, read_object, write_manifest
from mixerzoo.process import launch

OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"
STATE_FILE = "trainer_state.json"

_COMPLETE = re.compile(r"checkpoint-([0-9]{1,18})")
#: What is put behind the name of a checkpoint that cannot be used.
_DAMAGED = ".damaged"
_NEEDED = ("config.json", SCHEDULER_FILE, STATE_FILE)
_WHOLE = ("model.safetensors", OPTIMIZER_FILE)
#: What each of several processes has written of weights and optimizer state; the rest of the first one's names.
_SHARES = ("-model-00001-of-00002.safetensors", "-model-00002-of-00002.safetensors")
_FIRST_SHARES = tuple(f"shard-00001{rest}" for rest in _SHARES)


def complete_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Step and folder of every complete checkpoint, oldest first.

    Args:
        directory: the ``checkpoints`` of a run.
    """
    if not directory.is_dir():
        return []
    matches = [(match, path) for path in directory.iterdir() if (match := _COMPLETE.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches if path.is_dir())


def publish_checkpoint(
    folder: Path, target: Path, *, run: str, step: int, processes: int, sequences: int, sums: Mapping[str, str]
) -> None:
    """Give a checkpoint that is written its manifest and its name.

    Args:
        folder: holds all its files; on the same file system.
        target: where it goes; what is there, of a run that was resumed before it, goes.
        run: identity of the run.
        step: after which it was taken.
        processes: how many train.
        sequences: that a step of all of them sees.
        sums: as in `mixerzoo.files.write_manifest`.

    Raises:
        OSError: the disk is full or fails.
    """
    names = [path.name for path in folder.iterdir()]
    write_manifest(folder, names, run=run, step=step, processes=processes, sequences=sequences, sums=sums)
    if target.exists():
        files.remove_directory(target)
    files.publish(folder, target)


def newest_whole(directory: Path, run: str, say: Callable[[str], None], *, main: bool) -> tuple[int, Path] | None:
    """The newest checkpoint that training can go on from.

    Newer ones that are damaged are set aside under another name.

    Args:
        directory: the ``checkpoints`` of a run.
        run: its identity.
        say: told what is wrong with each newer one.
        main: whether this is the process that writes.

    Returns:
        Its step and folder; None: there is no checkpoint at all.

    Raises:
        RunError: there are some, and none can be used (says why).
        CheckpointError: a file cannot be read, which says nothing of what it holds.
    """
    refused: list[tuple[Path, str]] = []
    for step, folder in reversed(complete_checkpoints(directory)):
        reason = next(_why_not(folder, step, run), None)
        if reason is None:
            for bad, why in refused:
                say(f"{why}; going on from {folder.name}, and {bad.name} is set aside as {bad.name}{_DAMAGED}")
                if main:
                    _set_aside(bad)
            return step, folder
        refused.append((folder, reason))
    if not refused:
        return None
    raise RunError(
        f"no checkpoint in {directory} can be used to go on:\n"
        + "\n".join(f"  {reason}" for _, reason in refused)
        + "\nrestore one of them, or begin anew with --overwrite"
    )


def _why_not(folder: Path, step: int, run: str) -> Iterator[str]:
    """Why training cannot go on from a checkpoint: nothing where it can."""
    if not (folder / MANIFEST_FILE).exists():
        yield f"{folder} has no {MANIFEST_FILE}: a part of a checkpoint, or one of an earlier version of mixerzoo"
        return
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise
        yield str(error)
        return
    if manifest.get("run") != run:
        yield f"{folder} belongs to another run (its {MANIFEST_FILE} has another run_id than run.json)"
    if manifest.get("step") != step:
        yield f"{folder} was taken after step {manifest.get('step')} (by its {MANIFEST_FILE}), and was renamed"
    entries = manifest["files"]
    shares = any(name.startswith("shard-") for name in entries)
    for name in _NEEDED + (_FIRST_SHARES if shares else _WHOLE):
        if name not in entries:
            yield f"{folder} has no {name}, so it holds weights and cannot be trained on"
    found = _difference(folder, entries)
    if found is not None:
        yield found
    try:
        recorded = read_object(folder / STATE_FILE, RunError).get("global_step")
    except RunError as error:
        yield str(error)
    else:
        if recorded != step:
            yield f"{folder / STATE_FILE} is that of step {recorded}"


def _difference(folder: Path, entries: Mapping[str, Any]) -> str | None:
    """As `mixerzoo.files.difference`; of several processes on a machine the others take the word of one."""
    if launch().local_world_size == 1:
        return difference(folder, entries)

    def verify() -> None:
        if (found := difference(folder, entries)) is not None:
            raise RunError(found)

    try:
        verified_once([folder / MANIFEST_FILE, *(folder / name for name in entries)], verify)
    except RunError as error:
        return str(error)
    except FileNotFoundError:
        return difference(folder, entries)
    return None


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + _DAMAGED)
    if aside.exists():
        files.remove_directory(aside)
    os.replace(folder, aside)
    files.sync(folder.parent)


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest checkpoints.

    Args:
        directory: the ``checkpoints`` of a run.
        keep: how many stay.

    Raises:
        OSError: one cannot be removed.
    """
    found = complete_checkpoints(directory)
    for _, old in found[: max(0, len(found) - keep)]:
        files.remove_directory(old)


def tidy(directory: Path, keep: int) -> None:
    """Leave what a finished run keeps: so many checkpoints, and the optimizer's state in the newest alone.

    Args:
        directory: the ``checkpoints`` of a run.
        keep: how many stay.

    Raises:
        OSError: something cannot be removed.
    """
    prune(directory, keep)
    for _, folder in complete_checkpoints(directory)[:-1]:
        optimizer = [path for path in folder.iterdir() if path.name == OPTIMIZER_FILE or path.name.endswith(_SHARES[1])]
        if optimizer:
            manifest = read_manifest(folder)
            names = manifest["files"].keys() - {path.name for path in optimizer}
            rest = {key: value for key, value in manifest.items() if key != "files"}
            write_manifest(folder, names, **rest)
        for path in optimizer:
            path.unlink()


def remove_all(directory: Path) -> None:
    """Remove every checkpoint, whole, damaged or unfinished; other files stay.

    Args:
        directory: the ``checkpoints`` of a run.

    Raises:
        OSError: something cannot be removed.
    """
    prune(directory, 0)
    for path in directory.glob(f"checkpoint-*{_DAMAGED}"):
        if _COMPLETE.fullmatch(path.name.removesuffix(_DAMAGED)):
            files.remove_directory(path)
    remove_leftovers(directory)


def remove_leftovers(directory: Path) -> None:
    """Remove checkpoints that an earlier process left unfinished or half removed.

    Args:
        directory: the ``checkpoints`` of a run in which no process is at work.

    Raises:
        OSError: something cannot be removed.
    """
    for path, name in files.unfinished_in(directory):
        if _COMPLETE.fullmatch(name.removesuffix(_DAMAGED)):
            files.remove(path)
    for _, folder in complete_checkpoints(directory):
        for path, name in files.unfinished_in(folder):
            if name == MANIFEST_FILE:
                files.remove(path)
