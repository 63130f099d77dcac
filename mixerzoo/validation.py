"""Turns pydantic's errors into lines that say what is wrong, where, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from mixerzoo.errors import did_you_mean
from mixerzoo.yaml_text import one_line

Path = tuple[str | int, ...]

#: What a value of the wrong type should have been, by pydantic's error type.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "none_required": "null",
}
#: A list of the wrong length, by pydantic's error type.
_LENGTHS = {"too_short": ("more", "min_length"), "too_long": ("less", "max_length")}
#: A number out of bounds, by pydantic's error type.
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("greater than or equal to", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("less than or equal to", "le"),
}
#: How many problems are explained; to look for the nearest names of thousands would take minutes.
_MOST = 50
#: What may be a key, or keys joined by dots, in a sentence.
_KEY = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        path: keys from the root to the value, or to the mapping that lacks a key.
        message: what is wrong and what would be right.
        involved: paths of the values that do not go together, where it takes several.
    """

    path: Path
    message: str
    involved: tuple[Path, ...] = ()

    def below(self, *keys: str | int) -> Problem:
        """The same, seen from a root further up."""
        return Problem((*keys, *self.path), self.message, tuple((*keys, *path) for path in self.involved))


def problems(error: ValidationError, model: type[BaseModel], value: Any) -> list[Problem]:
    """Every problem in a validation error, in the order of the model's fields.

    Args:
        error: from ``model.model_validate(value)``.
        model: supplies the known keys for suggestions.
        value: what was validated. It tells keys from the names that pydantic puts between them, which are those
            of the members of a union.
    """
    found = []
    choices: dict[Path, _Choice] = {}
    items = error.errors(include_url=False)
    for item in items[:_MOST]:
        location: Path = tuple(item["loc"])
        path = keys_in(location, value)
        expected = (
            f"one of {', '.join(_known(item))}" if item["type"] == "literal_error" else _EXPECTED.get(item["type"])
        )
        if expected is not None and path == keys_in(location[:-1], value) and location[-1:] != path[-1:]:
            choices.setdefault(path, _Choice(item["input"], [])).expected.append(expected)
        else:
            found.append(_problem(item, location, path, model, value))
    for path, choice in choices.items():
        # A member that took the value's type, and failed by its bounds or further in, is the one that was meant.
        others = (*choices, *(problem.path for problem in found))
        within = any(len(other) > len(path) and other[: len(path)] == path for other in others)
        if not within and not any(problem.path == path for problem in found):
            found.append(Problem(path, f"expected {' or '.join(choice.expected)}, got {shown(choice.given)}"))
    if len(items) > _MOST:
        found.append(Problem((), f"{len(items) - _MOST} more problems"))
    return found


class _Choice(NamedTuple):
    """A value that no member of a union takes, and what each would have taken."""

    given: Any
    expected: list[str]


def _problem(item: Any, location: Path, path: Path, model: type[BaseModel], value: Any) -> Problem:
    kind, given = item["type"], item.get("input")
    involved: tuple[Path, ...] = ()
    if kind == "extra_forbidden":
        known = sorted(_known_keys(model, location[:-1]))
        key = str(location[-1])
        deeper = _sections_with(model, key) if len(location) == 1 else []
        meant = f" (did you mean {' or '.join(map(repr, deeper))}?)" if deeper else did_you_mean(key, known)
        message = f"unknown key{meant}; known keys: {', '.join(known) or 'none'}"
    elif kind == "missing":
        message = f"the key {location[-1]!r} is required"
    elif kind == "union_tag_invalid":
        key = item["ctx"]["discriminator"].strip("'")
        path, name = (*path, key), given[key]
        known = [each.strip("'") for each in item["ctx"]["expected_tags"].split(", ")]
        message = f"unknown name {shown(name)}{did_you_mean(str(name), known)}; known: {', '.join(known)}"
    elif kind == "union_tag_not_found":
        message = f"the key {item['ctx']['discriminator']} is required"
    elif kind == "literal_error":
        known = _known(item)
        message = f"{shown(given)} is none of {', '.join(known)}{did_you_mean(str(given), known)}"
    elif kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}, got {shown(given)}"
    elif kind in _LENGTHS:
        word, bound = _LENGTHS[kind]
        message = f"expected a list of length {item['ctx'][bound]} or {word}, got {shown(given)}"
    elif kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        message = f"input should be {word} {_number(item['ctx'][bound])}, got {shown(given)}"
    elif kind == "value_error":
        message = str(item["ctx"]["error"])
        mentioned = ((*path, *key.split(".")) for key in _KEY.findall(message))
        involved = tuple(place for place in mentioned if keys_in(place, value) == place)
    else:
        message = f"{item['msg'][:1].lower()}{item['msg'][1:]}, got {shown(given)}"
    return Problem(path, message, involved)


def _known(item: Any) -> list[str]:
    """The words of a Literal."""
    return [each.strip("'") for each in item["ctx"]["expected"].replace(" or ", ", ").split(", ")]


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e15 else f"{bound:g}"


def shown(value: Any, length: int = 60) -> str:
    """A value as YAML writes it, on one line and cut short if need be; text is quoted.

    Args:
        value: anything; of a large one, only the beginning is looked at.
        length: at most so many characters.
    """
    value = _beginning(value, [length])
    if isinstance(value, str):
        text = repr(value)
    else:
        text = one_line(to_jsonable_python(value, fallback=_named, inf_nan_mode="constants"))
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _beginning(value: Any, budget: list[int]) -> Any:
    """The part of a value that ``budget[0]`` characters can show; every value and each of its parts takes some."""
    budget[0] -= 1
    room = max(0, budget[0])
    if isinstance(value, str):
        budget[0] -= len(value)
        return value[: room + 1]
    if isinstance(value, int) and value.bit_length() > 4 * 400:
        return "a number of hundreds of digits"
    if isinstance(value, Mapping):
        kept = {}
        for key, inner in value.items():
            if budget[0] <= 0:
                break
            name = key[:room] if isinstance(key, str) else _named(key)
            budget[0] -= len(name)
            kept[name] = _beginning(inner, budget)
        return kept
    if isinstance(value, list | tuple):
        items = []
        for inner in value:
            if budget[0] <= 0:
                break
            items.append(_beginning(inner, budget))
        return items
    return value


def _named(value: Any) -> str:
    """A value that YAML cannot hold; its own words might be long, or fail."""
    return f"an object of type {type(value).__name__}"


def dotted(path: Path) -> str:
    """Keys joined by dots, cut short where they would fill the screen."""
    text = ".".join(str(part)[:80] for part in path[:12])
    return f"{text}…" if len(path) > 12 else text


def keys_in(location: Path, value: Any) -> Path:
    """The parts of a location that are keys of the value."""
    path: list[str | int] = []
    for part in location:
        known = range(len(value)) if isinstance(value, list | tuple) else value if isinstance(value, Mapping) else ()
        if part in known:
            path.append(part)
            value = value[part]
    return tuple(path)


def _known_keys(model: type[BaseModel], path: Path) -> set[str]:
    models = [model]
    for key in path:
        if isinstance(key, int):
            continue  # all entries of a list are of the same kinds
        tagged = [m for m in models if _tag(m) == key and len(models) > 1]
        named = [m for m in models if m.__name__ == key]  # a member of a union without tags
        if tagged or named:
            models = tagged or named
            continue
        fields = (m.model_fields[str(key)] for m in models if str(key) in m.model_fields)
        models = [inner for field in fields for inner in _models_in(field)]
    return {name for m in models for name in m.model_fields}


def _sections_with(model: type[BaseModel], key: str) -> list[str]:
    """The dotted keys of that name one level down."""
    return [
        f"{name}.{key}"
        for name, field in model.model_fields.items()
        if any(key in inner.model_fields for inner in _models_in(field))
    ]


def _tag(model: type[BaseModel]) -> str | None:
    name = model.model_fields.get("name") or model.model_fields.get("rope_type")
    values: Sequence[Any] = get_args(name.annotation) if name is not None else ()
    return values[0] if len(values) == 1 else None


def _models_in(field: FieldInfo) -> Iterator[type[BaseModel]]:
    pending: list[Any] = [field.annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        else:
            pending.extend(get_args(annotation))
