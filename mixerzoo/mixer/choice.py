"""A mixer chosen by name, with its options: what recipes and compositions hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from annotated_types import Le, Lt
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_serializer, model_validator
from pydantic.fields import FieldInfo

from mixerzoo.errors import MixerError, PluginError
from mixerzoo.mixer.card import MixerConfig
from mixerzoo.mixer.plugin_guard import guarded
from mixerzoo.mixer.registry import load_registry
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
        found = check_choice(value)
        if isinstance(found, MixerChoice):
            return {"name": found.name, "options": found.options}
        # As a field of a larger model the paths would be lost; `parse_recipe` checks mixers beforehand.
        raise ValueError("; ".join(f"{'.'.join(map(str, p.path))}: {p.message}" for p in found))

    @model_serializer
    def _to_flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options.model_dump()}


def check_choice(value: Mapping[str, Any]) -> MixerChoice | list[Problem]:
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
    if len(name) > _MAX_NAME:
        return [Problem(("name",), f"no mixer has a name of {len(name):,} characters")]
    try:
        entry = load_registry().get(name)
    except MixerError as error:
        return [Problem(("name",), str(error))]
    config = entry.mixer.Config
    found = [problem for key, option in options.items() for problem in _unbounded(config, key, option)]
    if not found:
        try:
            with guarded(entry.plugin, "checking its options"):
                checked = config.model_validate(options)
            return MixerChoice.model_construct(name=name, options=checked)
        except ValidationError as error:
            found = [_of(name, problem) for problem in problems(error, config, options)]
        except (ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError, PluginError) as error:
            # What a plugin's own validator raises beside ValueError.
            reason = f"{type(error).__name__}: {error}"
            found = [Problem((), f"the options of mixer {name!r} cannot be checked: {reason}")]
    return found


#: Numbers of an option whose `Config` sets no bound of its own.
_MAX_WHOLE = 2**16
_MAX_NUMBER = 1e30
_MAX_NAME = 200


def _unbounded(config: type[MixerConfig], key: str, option: Any) -> list[Problem]:
    """Numbers that no mixer can work with, where its author set no bound."""
    field = config.model_fields.get(key)
    bounded = field is not None and _has_bound(field)
    found = []
    pending: list[tuple[tuple[str | int, ...], Any]] = [((key,), option)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [((*path, inner), each) for inner, each in value.items()]
        elif isinstance(value, list | tuple):
            pending += [((*path, index), each) for index, each in enumerate(value)]
        elif isinstance(value, float) and not abs(value) <= _MAX_NUMBER:
            found.append(Problem(path, f"must be finite, and at most {_MAX_NUMBER:g} in size, got {shown(value)}"))
        elif isinstance(value, int) and abs(value) > _MAX_WHOLE and not bounded:
            found.append(Problem(path, f"must be at most {_MAX_WHOLE:,} in size, got {shown(value)}"))
    return found


def _has_bound(field: FieldInfo) -> bool:
    """Whether an upper bound stands in a field's constraints, or in those of a part of its type."""
    pending: list[Any] = [*field.metadata, field.annotation]
    while pending:
        part = pending.pop()
        if isinstance(part, Le | Lt):
            return True
        if isinstance(part, FieldInfo):
            pending += part.metadata
        pending += get_args(part)
    return False


def _of(mixer: str, problem: Problem) -> Problem:
    """A problem with an option that the mixer has not, with what to do if it was another mixer's."""
    if not problem.message.startswith("unknown key"):
        return problem
    hint = f"of mixer {mixer!r}; to choose another mixer, replace all of it: mixer={{name: {mixer}}}"
    return problem._replace(message=f"{problem.message} ({hint})")
