"""The JSON Schema of recipes."""

from __future__ import annotations

from typing import Any

from mixerzoo.mixer import load_registry
from mixerzoo.recipe.recipe import Recipe


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
    # A checkpoint supplies what is left out.
    alone = {"not": {"required": ["init_from"]}}
    model, data = schema["$defs"]["RecipeModel"], schema["$defs"]["DataConfig"]
    model |= {"if": alone, "then": {"required": model.pop("required")}}
    data["required"].remove("tokenizer")
    schema |= {
        "if": {"properties": {"model": alone}},
        "then": {"properties": {"data": {"required": ["tokenizer"]}}},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mixerzoo recipe", **schema}
