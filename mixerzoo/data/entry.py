"""One prepared text on disk: the files of a cache entry, checked when opened and installed whole.

An entry is a directory named by its fingerprint::

    train.bin  validation.bin    ids, little-endian uint16 or uint32; each document ends with the end of text
    tokenizer.json  tokenizer_config.json
    validation.txt  bigrams.npy  what the yardsticks are computed from
    yardsticks.json              appears when they have been
    meta.json                    counts, and the size and SHA-256 of every file above but the last

It is written in a directory beside it whose name begins with a dot, synced, and moved into place when complete.
After a killed process such a directory stays behind; it is never read, can be deleted, and goes when the entry is next
begun on that machine, or any entry once nobody has written to it for a week.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixerzoo.data import verified
from mixerzoo.data.machine import is_marked, marked
from mixerzoo.data.sealed import read_sealed_json, to_sealed_json
from mixerzoo.data.tokenizer import TextTokenizer
from mixerzoo.data.tokens import TokenFile
from mixerzoo.errors import DataError
from mixerzoo.files import publish, remove_directory, sha256, unfinished, unfinished_in, write_text

FORMAT = 2
"""Part of every fingerprint: raise it when the layout or the making of an entry changes."""


_META = "meta.json"
#: What an entry is called.
_KEY = re.compile("[0-9a-f]{64}")
#: Seconds after which what nobody has written to is nobody's any more: a terabyte takes days.
_OLD = 7 * 24 * 3600.0


@dataclass(frozen=True)
class TokenSplit:
    """One side of the prepared text.

    Attributes:
        tokens: ids, shape ``[num_tokens]``, read from the disk as they are asked for; each document ends with the end
            of text.
        num_bytes: UTF-8 bytes of the text itself, the denominator of bits per byte.
        num_documents: documents, which is also the number of end-of-text ids added.
    """

    tokens: TokenFile
    num_bytes: int
    num_documents: int


@dataclass(frozen=True)
class PreparedData:
    """Tokenised text, ready to train on; made by ``prepare``.

    Attributes:
        train: the training side.
        validation: the validation side; it shares no document with the training side.
        tokenizer: made the ids, and turns them back into text.
        fingerprint: equal for equal text, split and tokenizer.
        directory: the cache entry that holds it all.
        notices: what is worth a line to whoever trains on it.
        mixture: what each of several sources gave to the training side; None where there is one.
        validation_mixture: the same of the validation side; None also where an earlier version prepared the text.
    """

    train: TokenSplit
    validation: TokenSplit
    tokenizer: TextTokenizer
    fingerprint: str
    directory: Path
    notices: tuple[str, ...] = ()
    mixture: MixtureCounts | None = None
    validation_mixture: MixtureCounts | None = None

    @property
    def held_out(self) -> float:
        """The share of the text, by bytes, that is held out for validation."""
        return self.validation.num_bytes / (self.train.num_bytes + self.validation.num_bytes)


class DamagedEntry(DataError):
    """A cache entry does not hold what was written."""


@dataclass(frozen=True)
class SideCounts:
    """What the writer counted on one side, or of what one source gave to it."""

    num_tokens: int
    num_bytes: int
    num_documents: int

    def plus(self, after: SideCounts, before: SideCounts) -> SideCounts:
        """With what was counted between two counts of the same side."""
        return SideCounts(
            self.num_tokens + after.num_tokens - before.num_tokens,
            self.num_bytes + after.num_bytes - before.num_bytes,
            self.num_documents + after.num_documents - before.num_documents,
        )


@dataclass(frozen=True)
class MixtureCounts:
    """What came of several sources on one side.

    Attributes:
        sources: what each of them gave.
        ended: the one that has no document left, with which the text ends; None where a limit ends it.
    """

    sources: tuple[SideCounts, ...]
    ended: int | None


def seal(
    directory: Path,
    dtype: str,
    train: SideCounts,
    validation: SideCounts,
    mixture: MixtureCounts | None = None,
    validation_mixture: MixtureCounts | None = None,
) -> None:
    """Writes meta.json, the last file of an entry.

    Args:
        directory: holds all other files.
        dtype: numpy name of the ids' type.
        train: counts of the training side.
        validation: counts of the validation side.
        mixture: what came of several sources on the training side.
        validation_mixture: and on the validation side.
    """
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(directory.iterdir())}
    mixtures = {"mixture": mixture, "validation_mixture": validation_mixture}
    meta = {
        "format": FORMAT,
        "dtype": dtype,
        "train": asdict(train),
        "validation": asdict(validation),
        **{name: asdict(each) for name, each in mixtures.items() if each is not None},
        "files": files,
    }
    write_text(directory / _META, to_sealed_json(meta))


def open_entry(directory: Path) -> PreparedData | None:
    """The entry in ``directory``; None where there is none.

    Raises:
        DamagedEntry: it does not hold what was written.
        DataError: it cannot be read.
    """
    try:
        os.lstat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(directory, error) from error
    try:
        return _open(directory)
    except DamagedEntry:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedEntry(
            f"the prepared text in {directory} is damaged ({error.strerror}: {error.filename})"
        ) from error
    except OSError as error:
        raise _unreadable(directory, error) from error


def _open(directory: Path) -> PreparedData:
    def damaged(what: str) -> DamagedEntry:
        return DamagedEntry(f"the prepared text in {directory} is damaged ({what})")

    def verify() -> None:
        for name, written in meta["files"].items():
            if sha256(directory / name) != written["sha256"]:
                raise damaged(f"the checksum of {name} is wrong")

    _check_regular(directory / _META)
    try:
        meta: dict[str, Any] = read_sealed_json(directory / _META)
    except ValueError as error:
        raise damaged(f"{_META}: {error}") from error
    for name, written in meta["files"].items():
        size = _check_regular(directory / name)
        if size != written["bytes"]:
            raise damaged(f"{name} has {size} bytes, and had {written['bytes']}")
    verified.once([directory / name for name in (_META, *meta["files"])], verify)
    sides = []
    for name in ("train", "validation"):
        counts = SideCounts(**meta[name])
        tokens = TokenFile(directory / f"{name}.bin", meta["dtype"], counts.num_tokens)
        sides.append(TokenSplit(tokens, counts.num_bytes, counts.num_documents))
    return PreparedData(
        sides[0],
        sides[1],
        TextTokenizer.load(directory),
        directory.name,
        directory,
        mixture=_mixture(meta.get("mixture")),
        validation_mixture=_mixture(meta.get("validation_mixture")),
    )


def _mixture(meta: dict[str, Any] | None) -> MixtureCounts | None:
    if meta is None:
        return None
    return MixtureCounts(tuple(SideCounts(**counts) for counts in meta["sources"]), meta["ended"])


def _check_regular(file: Path) -> int:
    """The size of a file; nothing is opened that could make a reader wait, such as a pipe."""
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(0, "no regular file", str(file))
    return status.st_size


def _unreadable(directory: Path, error: OSError) -> DataError:
    return DataError(f"cannot read the prepared text in {directory}: {error.strerror} ({error.filename})")


@contextmanager
def new_entry(directory: Path) -> Iterator[Path]:
    """A fresh directory that becomes the entry ``directory`` when the block ends without an error.

    Where another process was first, its entry stays and this one is thrown away. What killed processes left is removed.

    Args:
        directory: where the entry shall be, which no other process of this machine makes meanwhile (`machine.alone`).
            Something damaged in its place is removed.

    Raises:
        DataError: the cache directory cannot be written. (What cannot be read is a DataError already.)
    """
    scratch = unfinished(directory)
    with marked(scratch):
        try:
            _remove_leftovers(directory)
            scratch.mkdir(parents=True)
            yield scratch
            _install(scratch, directory)
        except OSError as error:
            raise DataError(
                f"cannot write to the cache directory {directory.parent} ({error.strerror or error}): "
                "set MIXERZOO_CACHE to one that can be written"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(directory: Path) -> None:
    """Remove what nobody is at any more: of this entry what was begun on this machine, of any entry what is old.

    Another machine, which waits for nobody here, may have the same cache.
    """
    for path, name in unfinished_in(directory.parent):
        ours = name == directory.name and is_marked(path)
        if _KEY.fullmatch(name) and (ours or _is_old(path)):
            # What another user left may stay.
            shutil.rmtree(path, ignore_errors=True)


def _is_old(path: Path) -> bool:
    try:
        newest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except FileNotFoundError:
        return False  # somebody is at it
    return newest < time.time() - _OLD


def _install(scratch: Path, directory: Path) -> None:
    while True:
        try:
            publish(scratch, directory)
        except OSError:
            # A directory cannot replace one that holds files.
            if not os.path.lexists(directory):
                raise
        else:
            return
        try:
            if open_entry(directory) is not None:
                return
        except DamagedEntry:
            _clear_away(directory)


def _clear_away(damaged: Path) -> None:
    try:
        if damaged.is_dir() and not damaged.is_symlink():
            remove_directory(damaged)
        else:
            damaged.unlink()
    except FileNotFoundError:
        pass  # another process has just done so
