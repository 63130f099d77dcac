"""A recipe: one YAML file that is a whole experiment; read, completed, checked, built."""

from mixerzoo.recipe.building import build, in_words
from mixerzoo.recipe.feasibility import (
    TrainingMemory,
    check_data,
    check_size,
    remembered,
    sense,
    tokens_of_run,
    training_memory,
)
from mixerzoo.recipe.read import load_recipe, to_recipe
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.recipe.schema import json_schema
from mixerzoo.recipe.yaml_source import YamlSource

__all__ = [
    "Recipe",
    "TrainingMemory",
    "YamlSource",
    "build",
    "check_data",
    "check_size",
    "in_words",
    "json_schema",
    "load_recipe",
    "remembered",
    "sense",
    "to_recipe",
    "tokens_of_run",
    "training_memory",
]
