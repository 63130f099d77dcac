"""A recipe: one YAML file that is a whole experiment; read, completed, checked, built."""

from mixerzoo.files import recipes_at_hand
from mixerzoo.recipe.at_hand import find_recipe, summary_of
from mixerzoo.recipe.building import build, check_buildable, in_words
from mixerzoo.recipe.feasibility import (
    FORWARDS_PER_STEP,
    TrainingMemory,
    check_data,
    check_size,
    remembered,
    sense,
    sequences_per_step,
    tokens_of_run,
    training_memory,
)
from mixerzoo.recipe.optimizer import AdafactorOptimizer, LionOptimizer, MuonOptimizer
from mixerzoo.recipe.optimizer_state import Kept, kept_of
from mixerzoo.recipe.parallel import FsdpConfig
from mixerzoo.recipe.parameter_groups import TrainedParameter, idle_groups, trained_parameters
from mixerzoo.recipe.precision import Precision, autocast_dtype, compute_dtype, weights_dtype
from mixerzoo.recipe.read import load_recipe, parse_recipe, to_recipe
from mixerzoo.recipe.recipe import Recipe
from mixerzoo.recipe.schema import json_schema
from mixerzoo.recipe.yaml_source import YamlSource

__all__ = [
    "FORWARDS_PER_STEP",
    "AdafactorOptimizer",
    "FsdpConfig",
    "Kept",
    "LionOptimizer",
    "MuonOptimizer",
    "Precision",
    "Recipe",
    "TrainedParameter",
    "TrainingMemory",
    "YamlSource",
    "autocast_dtype",
    "build",
    "check_buildable",
    "check_data",
    "check_size",
    "compute_dtype",
    "find_recipe",
    "idle_groups",
    "in_words",
    "json_schema",
    "kept_of",
    "load_recipe",
    "parse_recipe",
    "recipes_at_hand",
    "remembered",
    "sense",
    "sequences_per_step",
    "summary_of",
    "to_recipe",
    "tokens_of_run",
    "trained_parameters",
    "training_memory",
    "weights_dtype",
]
