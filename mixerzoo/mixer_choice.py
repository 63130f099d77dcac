"""A mixer chosen by name, with its options: what recipes and compositions hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_serializer, model_validator

from mixerzoo.errors import MixerError
from mixerzoo.mixer import MixerConfig
from mixerzoo.plugin_guard import guarded
from mixerzoo.registry import load_registry
from mixerzoo.validation import Problem, problems, shown


class MixerChoice(BaseModel):
    """``{name: …, **options}``: a mixer by name, its options validated by the mixer's own ``Config``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(description="Name of an installed mixer; `mixerzoo list` shows them.")
    options: SerializeAsAny[MixerConfig]

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "name" not in value or isinstance(value.get("options"), MixerConfig):
            return value
        found = check_mixer(value)
        if isinstance(found, MixerChoice):
            return {"name": found.name, "options": found.options}
        # As a field of a larger model the paths would be lost; `parse_recipe` checks mixers beforehand.
        raise ValueError("; ".join(f"{'.'.join(map(str, p.path))}: {p.message}" for p in found))

    @model_serializer
    def _to_flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options.model_dump()}


def check_mixer(value: Mapping[str, Any]) -> MixerChoice | list[Problem]:
    """Validate a choice by the chosen mixer's own ``Config``.

    Args:
        value: ``{name: …, **options}``.

    Returns:
        The choice, or all that is wrong, with paths within ``value``.
    """
    options = {key: option for key, option in value.items() if key != "name"}
    name = value.get("name")
    if "name" not in value:
        return [Problem((), "the key 'name' is required")]
    if not isinstance(name, str):
        return [Problem(("name",), f"expected text, got {shown(name)}")]
    try:
        entry = load_registry().get(name)
    except MixerError as error:
        return [Problem(("name",), str(error))]
    try:
        with guarded(entry.plugin, "checking its options"):
            config = entry.mixer.Config.model_validate(options)
    except ValidationError as error:
        return [_of(name, problem) for problem in problems(error, entry.mixer.Config, options)]
    return MixerChoice.model_construct(name=name, options=config)


def _of(mixer: str, problem: Problem) -> Problem:
    """A problem with an option that the mixer has not, with what to do if it was another mixer's."""
    if not problem.message.startswith("unknown key"):
        return problem
    hint = f"of mixer {mixer!r}; to choose another mixer, replace all of it: mixer={{name: {mixer}}}"
    return problem._replace(message=f"{problem.message} ({hint})")
