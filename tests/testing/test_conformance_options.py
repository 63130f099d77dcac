"""What the conformance kit draws for the options of a mixer."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from pydantic import Field, PositiveInt, conint

from mixerzoo import MixerConfig, ParameterRole
from mixerzoo.errors import MixerzooError
from mixerzoo.testing import CHECKS, failure_text, options, run_check
from mixerzoo.testing.drawn_options import Overrides
from wrong.basis import Projected


class Colour(Enum):
    """A type that the kit does not know."""

    RED = 1


def config(annotation: Any, **field: Any) -> type[MixerConfig]:
    """A ``Config`` with one option."""
    return type("Config", (MixerConfig,), {"__annotations__": {"option": annotation}, "option": Field(**field)})


def drawn(annotation: Any, overrides: Overrides | None = None, **field: Any) -> list[Any]:
    """The values that are drawn for an option."""
    found: list[Any] = []

    @settings(max_examples=200, database=None)
    @given(options(config(annotation, **field), overrides))
    def collect(chosen: dict[str, Any]) -> None:
        found.append(chosen.get("option"))

    collect()
    return sorted(
        set(found),
        key=lambda value: (isinstance(value, str), value is None, value if isinstance(value, int | float | str) else 0),
    )


@pytest.mark.parametrize(
    ("annotation", "field", "values"),
    [
        (bool, {"default": True}, [False, True]),
        (int, {"default": 1}, [0, 1, 2, 3, 4, 5]),
        (int, {"ge": 2}, [2, 3, 4, 5, 6, 7]),
        (int, {"gt": 2, "lt": 5}, [3, 4]),
        (int, {"ge": 1, "le": 2, "default": 1}, [1, 2]),
        (int, {"le": -3}, [-8, -7, -6, -5, -4, -3]),
        (int, {"le": 3}, [0, 1, 2, 3]),
        (int, {"ge": 1, "default": 100}, [1, 2, 3, 4, 5, 6, 100]),
        (int | None, {"gt": 0, "le": 3}, [1, 2, 3, None]),
        (PositiveInt | None, {"le": 2}, [1, 2, None]),
        (conint(ge=1, le=3), {}, [1, 2, 3]),
        (Literal["off"] | Annotated[int, Field(ge=3, lt=5)], {"default": "off"}, [3, 4, "off"]),
        (Annotated[int, Field(gt=1)], {"gt": 0, "lt": 4}, [2, 3]),
        (Literal["a", "b"], {}, ["a", "b"]),
        (int, {"default": 4, "examples": [7, 9]}, [4, 7, 9]),
        (int, {"examples": [7, 9]}, [7, 9]),
        (int, {"multiple_of": 4, "ge": 1}, [4]),
    ],
    ids=str,
)
def test_values_of_a_type(annotation: Any, field: dict[str, Any], values: list[Any]) -> None:
    assert drawn(annotation, **field) == values


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ({}, 0, 2),
        ({"ge": 0.1, "le": 0.9}, 0.1, 0.9),
        ({"gt": 0, "le": 1e6, "default": 1e4}, 62500, 1e6),
        ({"gt": 0, "le": 0.1}, 0.00625, 0.1),
        ({"gt": 0}, 0.125, 2),
        ({"lt": 1, "ge": 0}, 0, 0.9375),
        ({"le": -1.0}, -3, -1),
        ({"lt": -1.0}, -3, -1.125),
        ({"ge": -1, "le": 1}, -1, 1),
        ({"ge": 0.3, "le": 0.3}, 0.3, 0.3),
    ],
    ids=str,
)
def test_fractions_fill_their_bounds(field: dict[str, Any], low: float, high: float) -> None:
    default = field.get("default")
    values = [value for value in drawn(float, **field) if value != default]
    assert (min(values), max(values)) == (low, high)
    assert default is None or default in drawn(float, **field)
    # Nothing so small that it vanishes in a sum.
    assert all(value == 0 or abs(value) > 1e-3 for value in values)


def test_the_default_of_a_fraction_is_drawn_often() -> None:
    assert drawn(float | None, default=0.7, ge=0, le=1).count(0.7) == 1
    assert find(options(config(float, default=0.7)), lambda _: True) == {"option": 0.7}


def test_a_type_that_cannot_be_drawn_keeps_its_default() -> None:
    assert drawn(str, default="x") == [None]
    assert drawn(int | str, default=1) == [None]
    assert drawn(str, {"option": st.just("y")}, default="x") == ["y"]
    assert drawn(Colour, {"option": st.just(Colour.RED)}) == [Colour.RED]


@pytest.mark.parametrize(
    ("annotation", "field", "overrides", "words"),
    [
        (Colour, {}, {}, "option 'option': the kit cannot draw values of type Colour, and it has no default; give it"),
        (list[int], {}, {}, "cannot draw values of type list"),
        (int, {"gt": 0, "lt": 1}, {}, "option 'option': no value lies within its bounds; mend them, or give it a str"),
        (float, {"ge": 1, "le": 0}, {}, "no value lies within its bounds"),
        (float, {"gt": 1, "le": 1}, {}, "no value lies within its bounds"),
        (int, {}, {"option": [1, 2]}, r"option 'option': nothing can be drawn .*: \[1, 2\] is not a Hypothesis strat"),
        (int, {}, {"option": st.integers(5, 3)}, "option 'option': nothing can be drawn from what `overrides` says"),
    ],
    ids=str,
)
def test_an_option_that_cannot_be_drawn_is_named(
    annotation: Any, field: dict[str, Any], overrides: Any, words: str
) -> None:
    with pytest.raises(MixerzooError, match=words):
        options(config(annotation, **field), overrides)


def test_options_that_a_rule_forbids_are_not_drawn() -> None:
    with pytest.raises(NoSuchExample):
        find(options(config(int, ge=0, multiple_of=2)), lambda chosen: chosen["option"] % 2 == 1)


class Trained(MixerConfig):
    """Options."""

    as_matrix: bool = Field(False, description="Whether the matrix is trained as those of the layers are.")
    from_depth: int = Field(1, ge=1, le=3, description="From which depth on it is trained.")


class TrainedBy(Projected):
    """Its options change what training does with its parameter, and nothing else."""

    name = "trained_by"
    Config = Trained

    def parameter_roles(self) -> dict[str, ParameterRole]:
        said: Any = self.config
        return {"matrix": ParameterRole(decay=True, matrix=said.as_matrix, from_depth=said.from_depth)}


class TrainedByOne(TrainedBy):
    """The same, but for one that does nothing."""

    name = "trained_by_one"

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {"matrix": ParameterRole(decay=True)}


def test_an_option_that_changes_any_field_of_a_role_is_not_idle() -> None:
    result = run_check(CHECKS["options_matter"], TrainedBy)
    assert result.ok, failure_text(result)
    assert run_check(CHECKS["options_matter"], TrainedByOne).message.startswith("option 'as_matrix': False and True")
