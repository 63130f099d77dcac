"""What a mixer says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class MixerConfig(BaseModel):
    """Base of a mixer's options. Unknown keys are errors; values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def refuse_idle(self, beside: str, remedy: str, *names: str) -> None:
        """Refuse options that have no meaning beside others, for a validator of a mixer's ``Config``.

        One that equals its default passes: a checkpoint and a resolved recipe have every option written out.

        Args:
            beside: the options and their values, as in ``"dialect kimi"``.
            remedy: what would give it a meaning, as in ``"set dialect to snapshot"``.
            names: of those without a meaning.

        Raises:
            ValueError: one of them differs from its default.
        """
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} has no meaning with {beside}; leave it out, or {remedy}")


@dataclass(frozen=True)
class Neutral:
    """A setting at which the decoder equals a plain residual one, with the mixer's parameters as initialised.

    Attributes:
        options: options that it needs; the others are free.
        num_steps: depth that it needs, or None for any.
        up_to_norm_eps: equal up to the epsilon of the norms; else equal bit for bit.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    up_to_norm_eps: bool = False


@dataclass(frozen=True)
class MixerCard:
    """What a mixer says about itself; `mixerzoo show`, the docs and the tests read it.

    Attributes:
        title: the method's name as its paper writes it.
        summary: one sentence.
        paper: where it is defined, e.g. ``"arXiv 2402.02622"``; empty for the baseline.
        equation: the update in plain characters, one line each.
        family: ``"residual"``, ``"depth-weighted"``, ``"streams"``, ``"attention"``, ``"cache"``,
            ``"schedule"`` or ``"composition"``.
        acts_on: where it acts, in words, e.g. ``"value, before the cache write"``.
        parameters: extra parameters as a formula in the letters of `mixerzoo.mixer`, e.g. ``"0"``.
        kv_bytes: persistent bytes per token as a formula.
        in_flight_bytes: bytes per token of the current forward as a formula.
        neutral: where the decoder equals a plain residual one, in words, or empty if nowhere.
        neutral_settings: the same for the tests.
        dialects: what each named dialect means, by option value.
        notes: what was chosen where the paper is silent.
    """

    title: str
    summary: str
    paper: str
    equation: str
    family: Literal["residual", "depth-weighted", "streams", "attention", "cache", "schedule", "composition"]
    acts_on: str
    parameters: str
    kv_bytes: str
    in_flight_bytes: str
    neutral: str = ""
    neutral_settings: tuple[Neutral, ...] = ()
    dialects: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class ParameterRole:
    """What training does with one of a mixer's parameters.

    Attributes:
        decay: whether weight decay pulls it to zero.
        lr_factor: its learning rate as a multiple of the decoder's, above 0.
        from_depth: the fewest steps that a decoder has where it is used; in a shallower one it gets no gradient.
        matrix: whether it is a matrix [m, n] that maps a hidden state to vectors, as a layer's projections do. Muon
            then trains it, and ``train.width_scaling`` scales its rate.
    """

    decay: bool = False
    lr_factor: float = 1.0
    from_depth: int = 1
    matrix: bool = False


@dataclass(frozen=True)
class ReferenceReading:
    """How a mixer reads a checkpoint of another project.

    Attributes:
        options: the options of its ``Config``.
        names: tensor name in the file → parameter name within the mixer.
        unused: names of tensors that the layout contains but that no result depends on.
    """

    options: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
