"""A recipe: one YAML file that is a whole experiment; read, completed, checked, built."""

from mixerzoo.recipe.at_hand import find_recipe, recipes_at_hand, summary_of
from mixerzoo.recipe.building import build, in_words
from mixerzoo.recipe.feasibility import (
    TrainingMemory,
    check_data,
    check_size,
    remembered,
    sense,
    sequences_per_step,
    tokens_of_run,
    training_memory,
)
from mixerzoo.recipe.parallel import FsdpConfig
from mixerzoo.recipe.read import load_recipe, parse_recipe, to_recipe
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.recipe.schema import json_schema
from mixerzoo.recipe.yaml_source import YamlSource

__all__ = [
    "FsdpConfig",
    "Recipe",
    "TrainingMemory",
    "YamlSource",
    "build",
    "check_data",
    "check_size",
    "find_recipe",
    "in_words",
    "json_schema",
    "load_recipe",
    "parse_recipe",
    "recipes_at_hand",
    "remembered",
    "sense",
    "sequences_per_step",
    "summary_of",
    "to_recipe",
    "tokens_of_run",
    "training_memory",
]
