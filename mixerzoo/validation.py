"""Turns pydantic's errors into lines that say what is wrong, where, and what would be right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mixerzoo.errors import did_you_mean

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
}


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        path: keys from the root to the value, or to the mapping that lacks a key.
        message: what is wrong and what would be right.
    """

    path: Path
    message: str


def problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem in a validation error, in the order of the model's fields.

    Args:
        error: from ``model.model_validate``.
        model: supplies the known keys for suggestions.
    """
    found = []
    for item in error.errors(include_url=False):
        path: Path = tuple(item["loc"])
        kind, given = item["type"], item.get("input")
        if kind == "extra_forbidden":
            known = sorted(_known_keys(model, path[:-1]))
            message = f"unknown key{did_you_mean(str(path[-1]), known)}; known keys: {', '.join(known)}"
        elif kind == "missing":
            message = f"the key {path[-1]!r} is required"
            path = path[:-1]
        elif kind == "union_tag_invalid":
            context = item["ctx"]
            known = [name.strip("'") for name in context["expected_tags"].split(", ")]
            message = f"unknown name {context['tag']!r}{did_you_mean(context['tag'], known)}; known: {', '.join(known)}"
        elif kind == "union_tag_not_found":
            message = "the key 'name' is required"
        elif kind == "literal_error":
            known = [name.strip("'") for name in item["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            message = f"{given!r} is none of {', '.join(known)}{did_you_mean(str(given), known)}"
        elif kind in _EXPECTED:
            message = f"expected {_EXPECTED[kind]}, got {_shown(given)}"
        elif kind == "value_error":
            message = str(item["ctx"]["error"])
        else:
            message = f"{item['msg'][:1].lower()}{item['msg'][1:]}, got {_shown(given)}"
        found.append(Problem(path, message))
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known_keys(model: type[BaseModel], path: Path) -> set[str]:
    models = [model]
    for key in path:
        tagged = [m for m in models if _tag(m) == key]
        if len(models) > 1 and tagged:
            models = tagged
            continue
        fields = (m.model_fields[str(key)] for m in models if str(key) in m.model_fields)
        models = [inner for field in fields for inner in _models_in(field)]
    return {name for m in models for name in m.model_fields}


def _tag(model: type[BaseModel]) -> str | None:
    name = model.model_fields.get("name")
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
