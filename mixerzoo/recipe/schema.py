"""The JSON Schema of recipes."""

from __future__ import annotations

from typing import Any

from mixerzoo.mixer import load_registry
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.recipe.yaml_source import BASE


def json_schema() -> dict[str, Any]:
    """JSON Schema of recipes, with the options of every installed mixer, for editors."""
    schema = Recipe.model_json_schema()
    choices = []
    for name, entry in load_registry().entries.items():
        options = entry.mixer.Config.model_json_schema()
        # References point to the root: what an option's type is made of goes there.
        schema["$defs"] = options.pop("$defs", {}) | schema["$defs"]
        properties = {"name": {"const": name, "description": entry.mixer.card.summary}}
        choices.append(
            {
                **options,
                "title": name,
                "properties": properties | options.get("properties", {}),
                "required": ["name", *options.get("required", [])],
            }
        )
    schema["$defs"]["MixerChoice"] = {"oneOf": choices}
    sections = {
        name: {"required": schema["$defs"][part["$ref"].rpartition("/")[2]].pop("required")}
        for name, part in schema["properties"].items()
        if name in schema["required"] and name != "mixer"
    }
    # A checkpoint supplies what is left out.
    alone = {"not": {"required": ["init_from"]}}
    sections["model"] = {"if": alone, "then": sections["model"]}
    sections["data"]["required"].remove("tokenizer")
    sections["data"]["anyOf"] = [{"required": ["source"]}, {"required": ["sources"]}]
    whole = {
        "required": schema.pop("required"),
        "properties": sections,
        "if": {"properties": {"model": alone}},
        "then": {"properties": {"data": {"required": ["tokenizer"]}}},
    }
    base = {
        "type": "string",
        "minLength": 1,
        "description": "The recipe that this one inherits from: a path or a name.",
    }
    schema["properties"] = {BASE: base, **schema["properties"]}
    # What a recipe inherits it may leave out.
    schema |= {"if": {"not": {"required": [BASE]}}, "then": whole}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mixerzoo recipe", **schema}
