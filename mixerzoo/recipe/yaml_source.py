"""The YAML text of a recipe with the line of every key, and ``key.path=value`` overrides on top of it."""

from __future__ import annotations

import copy
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Self

from mixerzoo.errors import RecipeError, did_you_mean
from mixerzoo.validation import Path, Problem, dotted, keys_in, shown
from mixerzoo.yaml_text import MAX_BYTES, MAX_DEPTH, Node, TextError, compose


class YamlSource:
    """A YAML mapping, where each of its keys stands, and the overrides applied to it.

    Args:
        text: the YAML text.
        name: what to call it in messages: the file's path.
        overrides: each ``"key.path=value"``; the value is read as YAML.

    Raises:
        RecipeError: the text is not YAML, not a mapping, repeats a key, exceeds a bound of `yaml_text`, or an
            override is malformed.
    """

    def __init__(self, text: str, name: str, overrides: Sequence[str] = ()) -> None:
        self.name = name
        try:
            self._root: Node | None = compose(text)
        except TextError as error:
            raise RecipeError(f"{name}:{error.line}: {_explained(error)}") from error
        if not isinstance(self._root.value, dict):
            given = "nothing" if self._root.value is None else shown(self._root.construct())
            raise RecipeError(f"{name}:1: expected a mapping of keys to values, got {given}")
        self.data: dict[str, Any] = self._root.construct()
        self._written: dict[str, Any] = self._root.construct()
        self._overridden: dict[Path, str] = {}
        for override in overrides:
            self._apply(override)

    @classmethod
    def of(cls, mapping: Mapping[str, Any], name: str) -> Self:
        """A mapping that was never text, so that its keys have no lines.

        Args:
            mapping: of keys to values.
            name: what to call it in messages.
        """
        source = cls.__new__(cls)
        source.name, source._root, source._overridden = name, None, {}
        source.data = source._written = copy.deepcopy(dict(mapping))
        return source

    @classmethod
    def read(cls, path: FilePath, overrides: Sequence[str] = ()) -> Self:
        """Read a file.

        Raises:
            RecipeError: also where the file cannot be read.
        """
        name = shown_path(path)
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise RecipeError(f"{name}: is a directory, not a recipe file")
            if not stat.S_ISREG(mode):
                # A pipe would wait for ever for a writer, and a device might never end.
                raise RecipeError(f"{name}: is a pipe or a device, not a file")
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError as error:
            near = [*path.parent.glob("*.yaml"), *FilePath("recipes").rglob("*.yaml")]
            raise RecipeError(f"{name}: no such file{did_you_mean(str(path), map(str, near))}") from error
        except (OSError, ValueError) as error:
            # ValueError: a path that no system call takes, such as one with a NUL.
            raise RecipeError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{name}:1: too large for a recipe; at most {MAX_BYTES:,} bytes are read")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
            raise RecipeError(f"{name}:{line}: not UTF-8 text: the byte 0x{byte:02x} has no meaning there") from error
        return cls(text, name, overrides)

    def where(self, problem: Problem) -> str:
        """``"file:line: key.path"``, or the override that brought the problem about."""
        keys = dotted(problem.path)
        places = problem.involved or (problem.path,)
        for path in places:
            if override := self._override(path):
                place = f"override {shown(override, _SHOWN)}"
                return f"{place}: {keys}" if keys else place
        line = self._line(places[0])
        place = self.name if line is None else f"{self.name}:{line}"
        return f"{place}: {keys}" if keys else place

    def _override(self, path: Path) -> str | None:
        """The override that set a value, one that holds it, or, where the file has none, a part of it."""
        for end in range(len(path), 0, -1):
            if override := self._overridden.get(path[:end]):
                return override
        if path and keys_in(path, self._written) != path:
            return next((text for key, text in self._overridden.items() if key[: len(path)] == path), None)
        return None

    def _line(self, path: Path) -> int | None:
        if self._root is None:
            return None
        node = self._root
        line = node.line
        for part in path:
            if isinstance(node.value, dict) and part in node.value:
                line, node = node.value[str(part)]
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.line
        return line

    def _apply(self, override: str) -> None:
        key, equals, written = override.partition("=")
        parts = tuple(key.split("."))
        name = f"override {shown(override, _SHOWN)}"
        if not equals or not all(parts) or len(parts) > MAX_DEPTH:
            raise RecipeError(f"{name}: expected key.path=value, e.g. train.steps=100")
        try:
            value = compose(written).construct()
        except TextError as error:
            raise RecipeError(f"{name}: {_explained(error)}") from error
        target = self.data
        for part in parts[:-1]:
            inner = target.get(part)
            if inner is None:
                inner = target[part] = {}
            if not isinstance(inner, dict):
                raise RecipeError(f"{name}: {shown(part)} is not a mapping")
            target = inner
        target[parts[-1]] = value
        self._overridden[parts] = override


#: How much of an override is repeated in a message.
_SHOWN = 200


def _explained(error: TextError) -> str:
    return f"{error.message} (at {dotted(error.path)})" if error.path else error.message


def shown_path(path: FilePath) -> str:
    """A path as a message shows it: as it is, or cut short where no file system could hold it."""
    text = str(path)
    # Undecodable bytes of a file name are lone surrogates, which cannot be printed.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "\\0")
    return text if len(text) <= 4096 else f"{text[:200]}…"
