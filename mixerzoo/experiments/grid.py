"""A comparison: the mixers, seeds and values of keys that it crosses, and the runs that come of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from mixerzoo.recipe import Recipe

#: Keys of a recipe and a value for each, as YAML writes it, in the order in which they were given.
Values = tuple[tuple[str, str], ...]

#: What cells may have in common.
Equal = Literal["steps", "flops", "seconds"]

#: Seeds of tuning begin here where none are named, so that a comparison can grow without meeting them.
FIRST_TUNING_SEED = 1000

_Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Count = Annotated[int, Field(ge=1, le=10**6)]
_Seeds = Annotated[list[_Seed], Field(min_length=1)]
_Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]


class CompareConfig(BaseModel):
    """The section ``compare`` of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    mixers: list[str | dict[str, Any]] = Field(
        min_length=1, description="Names, names with options, or `label: name` and `label: {name: …}`."
    )
    seeds: _Count | _Seeds = Field(3, description="How many seeds, from the recipe's own on, or a list of them.")
    vary: _Grid = Field({}, description="Keys of the recipe, each with a list of values: all are crossed.")
    tune: _Grid = Field({}, description="The same; each mixer gets the values at which it does best.")
    tune_seeds: _Count | _Seeds = Field(
        1, description="Seeds for the choice, which the comparison does not use: how many from 1000 on, or a list."
    )
    equal: Equal = Field("steps", description="What the runs have in common: `steps`, `flops` or `seconds`.")
    baseline: str | None = Field(
        None, description="Label of the mixer that others are compared with; default: the first."
    )


@dataclass(frozen=True)
class Contender:
    """One mixer of a comparison.

    Attributes:
        label: what it is called, unlike all others.
        choice: the section ``mixer`` of its recipes.
    """

    label: str
    choice: dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What runs that differ in the seed alone have in common.

    Attributes:
        label: of the mixer.
        setting: values of the varied keys.
        tuned: values of the tuned keys.
    """

    label: str
    setting: Values = ()
    tuned: Values = ()


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        variant: what it runs.
        recipe: with its seed.
        place: its run directory, within the comparison's.
        purpose: ``"speed"`` is measured to find numbers of steps, ``"tune"`` to choose values, ``"compare"`` counts.
    """

    variant: Variant
    recipe: Recipe = field(hash=False)  # a mixer's options may hold lists
    place: Path
    purpose: Literal["speed", "tune", "compare"] = "compare"

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.recipe.seed

    @property
    def title(self) -> str:
        """The run in words."""
        values = "".join(f", {in_words(each)}" for each in (self.variant.setting, self.variant.tuned) if each)
        what = "" if self.purpose == "compare" else f" ({'its speed' if self.purpose == 'speed' else 'tuning'})"
        return f"{self.variant.label}{values}, seed {self.seed}{what}"

    @classmethod
    def of(cls, variant: Variant, recipe: Recipe, seed: int, steps: int | None, purpose: Any = "compare") -> Self:
        """A cell with its place.

        Args:
            variant: what it runs.
            recipe: of the variant.
            seed: of this run.
            steps: how many it takes where that is not the recipe's own number.
            purpose: as in the attribute.
        """
        parts = [_folder(in_words((*variant.setting, *variant.tuned)))] if variant.setting or variant.tuned else []
        changes: dict[str, Any] = {"seed": seed}
        if purpose == "speed":
            parts.append("speed")
        elif steps is not None:
            parts.append(f"steps={steps}")
        if steps is not None:
            changes["train"] = recipe.train.model_copy(update={"steps": steps})
        place = Path("cells", _folder(variant.label), *parts, f"seed-{seed}")
        return cls(variant, recipe.model_copy(update=changes), place, purpose)


@dataclass(frozen=True)
class Comparison:
    """A comparison whose every run is known to be valid.

    Attributes:
        source: the recipe's file, or name, as it was given.
        contenders: the mixers; labels are unique.
        baseline: the label that others are compared with.
        seeds: of the runs that are compared.
        tuning_seeds: of the runs that values are chosen by.
        vary: key → values.
        tune: key → values.
        equal: what the runs have in common.
        variants: the recipe of each variant, with the first seed.
    """

    source: str
    contenders: tuple[Contender, ...]
    baseline: str
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    vary: Mapping[str, list[Any]]
    tune: Mapping[str, list[Any]]
    equal: Equal
    variants: Mapping[Variant, Recipe]

    @property
    def settings(self) -> list[Values]:
        """All combinations of the varied values; one that is empty where nothing is varied."""
        return list(dict.fromkeys(variant.setting for variant in self.variants))

    @property
    def keys(self) -> list[tuple[str, Values]]:
        """Label and setting of everything that is compared."""
        return [(contender.label, setting) for contender in self.contenders for setting in self.settings]

    @property
    def recipe(self) -> Recipe:
        """The baseline's at the first values."""
        return next(recipe for variant, recipe in self.variants.items() if variant.label == self.baseline)

    def variants_of(self, label: str, setting: Values) -> list[Variant]:
        """The variants of a mixer that its values are chosen from; one where nothing is tuned."""
        return [variant for variant in self.variants if (variant.label, variant.setting) == (label, setting)]

    @property
    def size(self) -> int:
        """How many runs it takes, those that measure speed left out."""
        return grid_size(len(self.contenders), self.vary, self.tune, len(self.seeds), len(self.tuning_seeds))


def grid_size(
    mixers: int, vary: Mapping[str, list[Any]], tune: Mapping[str, list[Any]], seeds: int, tuning_seeds: int
) -> int:
    """How many runs a grid has."""
    settings, choices = 1, 1
    for values in vary.values():
        settings *= len(values)
    for values in tune.values():
        choices *= len(values)
    return mixers * settings * (seeds + (choices * tuning_seeds if tune else 0))


def in_words(values: Values) -> str:
    """Values of keys as ``key=value, key=value``."""
    return ", ".join(f"{key}={value}" for key, value in values)


_LONGEST = 80


def _folder(text: str) -> str:
    """A name for a directory that two different texts never share."""
    name = re.sub(r"[^\w.=,+-]+", "_", text.replace(", ", ","), flags=re.ASCII)
    if name == text.replace(", ", ",") and len(name) <= _LONGEST and name.strip("."):
        return name
    return f"{name[:_LONGEST].strip('._')}-{hashlib.sha256(json.dumps(text).encode()).hexdigest()[:8]}"
