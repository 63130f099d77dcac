"""`mixerzoo schema`."""

from __future__ import annotations

from mixerzoo.cli.common import print_json


def command() -> None:
    """Print the JSON Schema of recipes, for editors.

    It knows the options of every installed mixer.
    """
    from mixerzoo.recipe import json_schema

    print_json(json_schema())
