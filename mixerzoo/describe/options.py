"""A mixer's options in words, from its pydantic ``Config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import to_jsonable_python

from mixerzoo.errors import visible
from mixerzoo.yaml_text import one_line

if TYPE_CHECKING:
    from mixerzoo.mixer import Mixer

_WORDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "object": "mapping",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Option(NamedTuple):
    """One option of a mixer.

    Attributes:
        name: its key.
        type: which values it takes, in words.
        required: whether it has no default.
        default: as JSON holds it; None where it is required.
        description: what it does.
    """

    name: str
    type: str
    required: bool
    default: Any
    description: str


def options(mixer: type[Mixer]) -> list[Option]:
    """The options of a mixer in the order of its ``Config``."""
    schema = mixer.Config.model_json_schema(by_alias=False)
    return [
        Option(
            name=name,
            type=_in_words(schema["properties"][name], schema.get("$defs", {})),
            required=field.is_required(),
            default=None
            if field.is_required()
            else to_jsonable_python(field.get_default(call_default_factory=True, validated_data={})),
            description=visible(field.description or ""),
        )
        for name, field in mixer.Config.model_fields.items()
    ]


def snippet(mixer: type[Mixer]) -> str:
    """The ``mixer`` part of a recipe with every option at its default, to paste and edit."""
    lines = ["mixer:", f"  name: {mixer.name}"]
    for option in options(mixer):
        value = "" if option.required else one_line(option.default)
        lines.append(f"  {option.name}: {value}".rstrip() + f"  # {'required, ' * option.required}{option.type}")
    return "\n".join(lines)


def _in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _in_words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [_in_words(kind, definitions) for kind in schema.get("anyOf", schema.get("oneOf"))]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " | ".join(map(one_line, schema["enum"]))
    if "const" in schema:
        return one_line(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_in_words(schema['items'], definitions)}" if schema.get("items") else "list"
    bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_WORDS.get(str(kind), "any value"), ", ".join(bounds)]).strip()
