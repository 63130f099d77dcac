"""Datasets streamed through the ``datasets`` library (the extra ``data``)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from mixerzoo.data.config import HfSource
from mixerzoo.data.files import check_text
from mixerzoo.errors import DataError, did_you_mean

_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubDataset:
    """One dataset of an ``HfSource``. Nothing is asked of the network before it is needed."""

    def __init__(self, source: HfSource) -> None:
        self._source = source

    def fingerprint(self) -> str:
        """A string that changes when the dataset does, found without streaming it.

        It holds the source's own settings, what the ``datasets`` library resolved them to (commit or module
        hash, files and their etags), and size and time of local files. A dataset pinned to a full commit
        hash is not looked up.

        Raises:
            DataError: the dataset is unknown or out of reach, or ``datasets`` is not installed.
        """
        source = self._source
        known: dict[str, object] = {"source": source.model_dump(mode="json")}
        if not (_COMMIT.fullmatch(source.revision or "") and source.data_files is None):
            files = self._builder.config.data_files or {}
            known["resolved"] = [self._builder.hash, self._builder.config_id]
            known["files"] = {split: list(map(_stamp, names)) for split, names in files.items()}
            known["origin"] = {split: names.origin_metadata for split, names in files.items()}
        return json.dumps(known, sort_keys=True)

    def documents(self, split: str) -> Iterator[str]:
        """Streams the documents of ``split``, empty ones left out, within the source's limits.

        Raises:
            DataError: as ``fingerprint``, or an unknown split or column, or a value that is not text.
        """
        source = self._source
        left = source.max_bytes
        count = 0
        for number, record in enumerate(self._records(split)):
            where = f"dataset {source.path!r}, split {split!r}, record {number}"
            if source.field not in record:
                raise DataError(
                    f"{where}: no column {source.field!r}{did_you_mean(source.field, record)}; "
                    f"its columns: {', '.join(map(repr, record))}"
                )
            text = check_text(record[source.field], f"{where}: {source.field!r}")
            if not text:
                continue
            if left is not None:
                left -= len(text.encode())
                if left < 0:
                    return
            yield text
            count += 1
            if count == source.max_documents:
                return

    def _records(self, split: str) -> Iterator[dict[str, Any]]:
        try:
            yield from self._builder.as_streaming_dataset(split)
        except Exception as error:  # readers of all formats and the network share no class; raised in words
            raise self._problem(error) from error

    @cached_property
    def _builder(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                "source 'hf' needs the datasets library, which is not installed: pip install \"mixerzoo[data]\""
            ) from error
        source = self._source
        try:
            return datasets.load_dataset_builder(
                source.path,
                name=source.config,
                data_files=_lists(source.data_files),
                revision=source.revision,
            )
        except Exception as error:  # a script that is no longer run is a RuntimeError, a bad option a TypeError
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> DataError:
        return DataError(f"dataset {self._source.path!r}: {str(error) or type(error).__name__}")


def _lists(data_files: Any) -> Any:
    """``data_files`` with the lists that the datasets library asks for."""
    if isinstance(data_files, dict):
        return {split: _lists(files) for split, files in data_files.items()}
    return list(data_files) if isinstance(data_files, tuple) else data_files


def _stamp(file: str) -> tuple[str | int, ...]:
    if not os.path.exists(file):
        return (file,)
    status = os.stat(file)
    return file, status.st_size, status.st_mtime_ns
