"""YAML text with the line of every key, and ``key.path=value`` overrides on top of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import yaml

from mixerzoo.errors import RecipeError, did_you_mean
from mixerzoo.validation import Path, Problem, keys_in

_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number (as in YAML 1.2) and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag not in _KEY_TAGS:
                raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} appears twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class YamlSource:
    """A YAML mapping, where each of its keys stands, and the overrides applied to it.

    Args:
        text: the YAML text.
        name: what to call it in messages: the file's path.
        overrides: each ``"key.path=value"``; the value is read as YAML.

    Raises:
        RecipeError: the text is not YAML, not a mapping, repeats a key, or an override is malformed.
    """

    def __init__(self, text: str, name: str, overrides: Sequence[str] = ()) -> None:
        self.name = name
        self._root = self._compose(text)
        self.data: dict[str, Any] = self._construct(text)
        self._written = copy.deepcopy(self.data)
        self._overridden: dict[Path, str] = {}
        for override in overrides:
            self._apply(override)

    @classmethod
    def read(cls, path: FilePath, overrides: Sequence[str] = ()) -> YamlSource:
        """Read a file.

        Raises:
            RecipeError: also where the file cannot be read.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            near = [*path.parent.glob("*.yaml"), *FilePath("recipes").rglob("*.yaml")]
            raise RecipeError(f"{path}: no such file{did_you_mean(str(path), map(str, near))}") from error
        except IsADirectoryError as error:
            raise RecipeError(f"{path}: is a directory, not a recipe file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read: {error}") from error
        return cls(text, str(path), overrides)

    def where(self, problem: Problem) -> str:
        """``"file:line: key.path"``, or the override that brought the problem about."""
        dotted = ".".join(map(str, problem.path))
        places = problem.involved or (problem.path,)
        for path in places:
            if override := self._override(path):
                return f"override {override!r}: {dotted}" if dotted else f"override {override!r}"
        line = self._line(places[0])
        return f"{self.name}:{line}: {dotted}" if dotted else f"{self.name}:{line}"

    def _override(self, path: Path) -> str | None:
        """The override that set a value, one that holds it, or, where the file has none, a part of it."""
        for end in range(len(path), 0, -1):
            if override := self._overridden.get(path[:end]):
                return override
        if path and keys_in(path, self._written) != path:
            return next((text for key, text in self._overridden.items() if key[: len(path)] == path), None)
        return None

    def _line(self, path: Path) -> int:
        node: yaml.Node = self._root
        line = node.start_mark.line + 1
        for part in path:
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == str(part):
                        line, node = key.start_mark.line + 1, value
                        break
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
        return line

    def _compose(self, text: str) -> yaml.Node:
        try:
            root = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise RecipeError(self._explain(error)) from error
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{self.name}:1: expected a mapping of keys to values")
        return root

    def _construct(self, text: str) -> dict[str, Any]:
        try:
            data: dict[str, Any] = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise RecipeError(self._explain(error)) from error
        return data

    def _explain(self, error: yaml.YAMLError) -> str:
        mark = getattr(error, "problem_mark", None)
        place = f"{self.name}:{mark.line + 1}" if mark is not None else self.name
        return f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}"

    def _apply(self, override: str) -> None:
        key, equals, written = override.partition("=")
        parts = tuple(key.split("."))
        if not equals or not all(parts):
            raise RecipeError(f"override {override!r}: expected key.path=value, e.g. train.steps=100")
        try:
            value = yaml.load(written, Loader=_Loader)
        except yaml.YAMLError as error:
            raise RecipeError(f"override {override!r}: the value is not valid YAML") from error
        target = self.data
        for part in parts[:-1]:
            inner = target.get(part)
            if inner is None:
                inner = target[part] = {}
            if not isinstance(inner, dict):
                raise RecipeError(f"override {override!r}: {part!r} is not a mapping")
            target = inner
        target[parts[-1]] = value
        self._overridden[parts] = override
