"""The YAML text of a recipe with the line of every key, what it inherits, and ``key.path=value`` overrides on top."""

from __future__ import annotations

import copy
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Self

from mixerzoo.errors import RecipeError, did_you_mean
from mixerzoo.files import recipes_at_hand
from mixerzoo.recipe.at_hand import find_recipe
from mixerzoo.recipe.merging import merged
from mixerzoo.validation import Path, Problem, dotted, keys_in, shown
from mixerzoo.yaml_text import MAX_BYTES, MAX_DEPTH, Node, TextError, compose

#: The key by which a recipe inherits from another.
BASE = "base"
#: Recipes that inherit from each other in a row.
MAX_BASES = 16


class YamlSource:
    """A YAML mapping, where each of its keys stands, what it inherits, and the overrides applied to it.

    A mapping with the key ``base`` has all that the recipe has which that names (a path relative to the file, or the
    name of one that comes with the package), and its own keys on top: mappings are merged, null takes back a key of
    which it is no value, any other value replaces the inherited one, and so does a mapping that names another kind
    (``name``, ``rope_type``).

    Args:
        text: the YAML text.
        name: what to call it in messages: the file's path.
        overrides: each ``"key.path=value"``; the value is read as YAML.
        path: of the file; None: what it inherits is relative to the working directory.
        heirs: the files that inherit from it, the first one first.

    Raises:
        RecipeError: the text is not YAML, not a mapping, repeats a key, exceeds a bound of `yaml_text`, inherits from
            itself or from what cannot be read, or an override is malformed.
    """

    def __init__(
        self,
        text: str,
        name: str,
        overrides: Sequence[str] = (),
        *,
        path: FilePath | None = None,
        heirs: tuple[FilePath, ...] = (),
    ) -> None:
        self.name = name
        try:
            self._root: Node | None = compose(text)
        except TextError as error:
            raise RecipeError(f"{name}:{error.line}: {_explained(error)}") from error
        if not isinstance(self._root.value, dict):
            given = "nothing" if self._root.value is None else shown(self._root.construct())
            raise RecipeError(f"{name}:1: expected a mapping of keys to values, got {given}")
        self._complete(self._root.construct(), path, heirs)
        self._overridden: dict[Path, str] = {}
        for override in overrides:
            self._apply(override)

    @classmethod
    def of(cls, mapping: Mapping[str, Any], name: str) -> Self:
        """A mapping that was never text, so that its keys have no lines.

        Args:
            mapping: of keys to values.
            name: what to call it in messages.

        Raises:
            RecipeError: it inherits from what cannot be read.
        """
        source = cls.__new__(cls)
        source.name, source._root, source._overridden = name, None, {}
        source._complete(copy.deepcopy(dict(mapping)), None, ())
        return source

    def _complete(self, own: dict[str, Any], path: FilePath | None, heirs: tuple[FilePath, ...]) -> None:
        """Put what the source says itself on top of what it inherits."""
        self._own = own
        self._base: YamlSource | None = None
        if BASE in own:
            self._base = self._inherited(own[BASE], path, heirs)
            own = {key: value for key, value in own.items() if key != BASE}
        self.data: dict[str, Any] = copy.deepcopy(own if self._base is None else merged(self._base.data, own))
        self._written: dict[str, Any] = copy.deepcopy(self.data)

    def _inherited(self, given: Any, path: FilePath | None, heirs: tuple[FilePath, ...]) -> YamlSource:
        line = self._line((BASE,))[1]
        place = f"{self.name}: {BASE}" if line is None else f"{self.name}:{line}: {BASE}"
        if not isinstance(given, str) or not given:
            raise RecipeError(f"{place}: expected the path or the name of a recipe, got {shown(given)}")
        target = find_recipe(given, None if path is None else path.parent)
        if path is not None:
            heirs = (*heirs, path.resolve())
        if target.resolve() in heirs:
            circle = " → ".join(
                shown_path(each) for each in (*heirs[heirs.index(target.resolve()) :], target.resolve())
            )
            raise RecipeError(f"{place}: a recipe cannot inherit from itself: {circle}")
        if len(heirs) >= MAX_BASES:
            raise RecipeError(f"{place}: more than {MAX_BASES} recipes inherit from each other in a row")
        try:
            return YamlSource.read(target, heirs=heirs)
        except RecipeError as error:
            raise RecipeError(f"{error}\n  inherited by {place}: {given}") from error

    @classmethod
    def read(cls, path: FilePath, overrides: Sequence[str] = (), *, heirs: tuple[FilePath, ...] = ()) -> Self:
        """Read a file.

        Args:
            path: of the file, or the name of a recipe that comes with the package.
            overrides: each ``"key.path=value"``.
            heirs: the files that inherit from it, the first one first.

        Raises:
            RecipeError: also where the file cannot be read.
        """
        path = find_recipe(path)
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
            raise RecipeError(f"{name}: no such file{_nearest(path)}") from error
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
        return cls(text, name, overrides, path=path, heirs=heirs)

    def where(self, problem: Problem) -> str:
        """``"file:line: key.path"``, or the override that brought the problem about."""
        keys = dotted(problem.path)
        places = problem.involved or (problem.path,)
        for path in places:
            if place := self._set_by(path):
                return f"{place}: {keys}" if keys else place
        name, line = self._standing(places[0])
        place = name if line is None else f"{name}:{line}"
        return f"{place}: {keys}" if keys else place

    def changed(self, changes: Mapping[Path, Any], places: Mapping[Path, str]) -> Self:
        """A copy with other values, which are validated as if they had been written there.

        Args:
            changes: path → value; mappings on the way are made where they are missing.
            places: the same paths → where the value comes from, for messages.

        Raises:
            RecipeError: a value on the way is no mapping.
        """
        source = copy.copy(self)
        source.data, source._overridden = copy.deepcopy(self.data), dict(self._overridden)
        for path, value in changes.items():
            source._set(path, copy.deepcopy(value), places[path])
        return source

    def override_of(self, path: Path) -> str | None:
        """The override that set a value or a part of it, so that to change the value is to drop the override."""
        for key, place in self._overridden.items():
            longer, shorter = key[: len(path)] == path, path[: len(key)] == key
            if longer or (shorter and keys_in(path, self.data) == path):
                return place
        return None

    def take(self, key: str) -> Any:
        """The value of a key of the root, which from now on is no part of the recipe; None where there is none."""
        return self.data.pop(key, None)

    def _set_by(self, path: Path) -> str | None:
        """What set a value after the file, one that holds it, or, where the file has none, a part of it."""
        for end in range(len(path), 0, -1):
            if place := self._overridden.get(path[:end]):
                return place
        if path and keys_in(path, self._written) != path:
            return next((place for key, place in self._overridden.items() if key[: len(path)] == path), None)
        return None

    def _standing(self, path: Path) -> tuple[str, int | None]:
        """The file and line where a value stands, or as much of its path as is written anywhere."""
        return self._deepest(path)[1:]

    def _deepest(self, path: Path) -> tuple[int, str, int | None]:
        depth, line = self._line(path)
        inherited = None if self._base is None else self._base._deepest(path)
        return inherited if inherited is not None and inherited[0] > depth else (depth, self.name, line)

    def _line(self, path: Path) -> tuple[int, int | None]:
        """How many keys of a path stand in this file, and the line of the last."""
        if self._root is None:
            return len(keys_in(path, self._own)), None
        node, depth = self._root, 0
        line = node.line
        for part in path:
            if isinstance(node.value, dict) and part in node.value:
                line, node = node.value[str(part)]
                depth += 1
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line, depth = node.line, depth + 1
        return depth, line

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
        self._set(parts, value, name)

    def _set(self, path: Path, value: Any, place: str) -> None:
        target = self.data
        for depth, part in enumerate(path[:-1], 1):
            inner = target.get(str(part))
            if inner is None:
                inner = target[str(part)] = {}
            if not isinstance(inner, dict):
                what = "a list" if isinstance(inner, list) else shown(inner)
                raise RecipeError(
                    f"{place}: {shown(part)} is not a mapping but {what}; set all of it: {dotted(path[:depth])}=…"
                )
            target = inner
        target[str(path[-1])] = value
        self._overridden[path] = place


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


def _nearest(path: FilePath) -> str:
    """What may have been meant by a recipe that is not there: a file nearby, or the name of one at hand."""
    files = map(str, [*path.parent.glob("*.yaml"), *FilePath("recipes").rglob("*.yaml")])
    at_hand = recipes_at_hand()
    if path.name != str(path) or path.suffix in (".yaml", ".yml"):
        same = f"; {path.stem!r} alone names the recipe that comes with mixerzoo" if path.stem in at_hand else ""
        return same or did_you_mean(str(path), files)
    meant = did_you_mean(str(path), at_hand)
    return f", and no recipe of that name at hand{meant or '; `mixerzoo recipes` lists them'}"
