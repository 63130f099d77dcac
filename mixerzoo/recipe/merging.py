"""What a recipe inherits, with its own keys on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mixerzoo.mixer import MixerChoice, load_registry
from mixerzoo.recipe.recipe import Recipe

#: Keys that say of which kind a mapping is, so that the other keys of one kind mean nothing to another.
_KINDS = ("name", "rope_type")


def merged(
    base: Mapping[str, Any], own: Mapping[str, Any], models: Sequence[type[BaseModel]] = (Recipe,)
) -> dict[str, Any]:
    """A mapping on top of the one that it inherits.

    Mappings of one kind are merged. Null takes an inherited key back, unless it is a value that the key may have.
    Anything else replaces what is inherited.

    Args:
        base: what is inherited.
        own: lies on top.
        models: of which the mapping may be; of keys that none of them has, nothing is known.
    """
    found = dict(base)
    for key, value in own.items():
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        before = found.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and _same_kind(before, value):
            found[key] = merged(before, value, _models(fields, {**before, **value}))
        elif value is None and key in base and not any(map(_takes_null, fields)):
            del found[key]
        else:
            found[key] = value
    return found


def _same_kind(base: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    return all(own[kind] == base.get(kind) for kind in _KINDS if kind in own)


def _models(fields: Sequence[FieldInfo], value: Mapping[str, Any]) -> list[type[BaseModel]]:
    """The models of a mapping under one of these fields: the one of its kind, where it says of which it is."""
    found: list[type[BaseModel]] = []
    pending: list[Any] = [field.annotation for field in fields]
    while pending:
        part = pending.pop()
        if part is MixerChoice:
            # Its options lie beside its name.
            entry = load_registry().entries.get(str(value.get("name")))
            found += [entry.mixer.Config] if entry is not None else []
        elif isinstance(part, type) and issubclass(part, BaseModel):
            found.append(part)
        else:
            pending += get_args(part)
    return [model for model in found if _is_of(model, value)]


def _is_of(model: type[BaseModel], value: Mapping[str, Any]) -> bool:
    kinds = [kind for kind in _KINDS if kind in value and kind in model.model_fields]
    return all(value[kind] in get_args(model.model_fields[kind].annotation) for kind in kinds)


def _takes_null(field: FieldInfo) -> bool:
    return any(part in (None, type(None), Any) for part in (field.annotation, *get_args(field.annotation)))
