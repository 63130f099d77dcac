"""The JSON schema of recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mixerzoo import load_registry
from mixerzoo.recipe.schema import json_schema


def schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a schema."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from schemas_in(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from schemas_in(value)


def test_json_schema() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["if"] == {"not": {"required": ["base"]}}
    assert schema["then"]["required"] == ["model", "mixer", "data", "train"]
    assert "steps" in schema["then"]["properties"]["train"]["required"]
    assert schema["additionalProperties"] is False
    for part in schemas_in(schema):
        if "$ref" in part:
            assert part["$ref"].removeprefix("#/$defs/") in schema["$defs"]
        if part.get("type") == "object" and "properties" in part:
            assert part["additionalProperties"] is False
            assert set(part.get("required", [])) <= set(part["properties"])
    choices = {choice["properties"]["name"]["const"]: choice for choice in schema["$defs"]["MixerChoice"]["oneOf"]}
    assert choices.keys() == load_registry().entries.keys()
    for name, entry in load_registry().entries.items():
        assert set(choices[name]["properties"]) == {"name", *entry.mixer.Config.model_fields}
        assert "name" in choices[name]["required"]


def test_every_option_is_described() -> None:
    schema = json_schema()
    objects = [part for part in schemas_in(schema) if part.get("type") == "object" and "properties" in part]
    assert len(objects) > 8
    for part in objects:
        for name, option in part["properties"].items():
            assert option.get("description"), f"{part.get('title')}.{name}"
