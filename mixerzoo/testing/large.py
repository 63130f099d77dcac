"""Cases that are large in one way each: rows, runs of layers, tokens, positions, depth, width, tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mixerzoo.mixer import Mixer
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import Large
from mixerzoo.testing.drawn_options import Overrides, few_values
from mixerzoo.testing.ordinary import ORDINARY, default_options, is_served, ordinary_cases

#: More than 2¹⁷ numbers in a tensor of the prefill, and few in those of the tokens after it; no even blocks of layers.
#: Of more channels, with noise on all weights, a gate would be so steep that rounding alone decides.
_BIG: tuple[dict[str, Any], dict[str, Any]] = (
    {"num_layers": 7, "hidden_size": 64, "num_heads": 2, "num_kv_heads": 1},
    {"batch_size": 33, "chunks": (64, 1, 2), "pick": 65, "training": False},
)

#: What is large, and all else is small: then each costs a fraction of a second.
_SIZES: dict[Large, tuple[dict[str, Any], dict[str, Any]]] = {
    # Layers that are run many times over, for many rows.
    "rows": (
        {"loop": {"prelude": 1, "coda": 1, "count": 10}},
        {"batch_size": 33, "chunks": (1, 2), "pick": 1},
    ),
    # More tokens, in longer chunks, than any block of 128.
    "long": ({"num_layers": 2}, {"batch_size": 1, "chunks": (150, 1, 149), "pick": 200, "training": False}),
    # Deeper than any list that someone might cap.
    "deep": ({"num_layers": 66}, {"batch_size": 1, "chunks": (2, 1), "pick": 1}),
    # Channels and heads as real decoders have them.
    "wide": (
        {"num_layers": 2, "hidden_size": 1024, "num_heads": 16, "num_kv_heads": 16, "head_dim": 64},
        {"batch_size": 1, "chunks": (3, 2), "pick": 1, "training": False},
    ),
    # Positions of thousands.
    "far": (
        {"num_layers": 2, "num_heads": 2, "num_kv_heads": 1},
        {"batch_size": 1, "chunks": (4096, 1, 39), "pick": 4100},
    ),
    # Tensors so large that an operation may take another form.
    "big": _BIG,
    # The same, with other options.
    "varied": _BIG,
    # What a reference in plain Python bears of depth and heads.
    "tall": (
        {"num_layers": 20, "num_heads": 12, "num_kv_heads": 4, "head_dim": 2},
        {"batch_size": 1, "chunks": (2,), "pick": 1},
    ),
}


def large_cases(mixer: type[Mixer], kinds: tuple[Large, ...], overrides: Overrides | None = None) -> list[Case]:
    """Cases with the mixer's default options, but for those that it refuses; clause 8.6 bounds what it may refuse.

    Varied ones have other options: each choice of an option that has few, and whole numbers that are larger, for what
    is done at once in large tensors may hang on both.

    Args:
        mixer: the mixer under test.
        kinds: in which ways they are large.
        overrides: strategies for some of its options.

    Raises:
        MixerzooError: nothing can be drawn for an option.
    """
    defaults = default_options(mixer.Config, overrides)
    found = []
    for kind in kinds:
        chosen = _other_options(mixer, overrides) if kind == "varied" else [defaults]
        found += [case for options in chosen if (case := _large_case(mixer, kind, options)) is not None]
    return found


def _large_case(mixer: type[Mixer], kind: Large, options: Mapping[str, Any]) -> Case | None:
    """The case on the first ordinary decoder that the mixer does not refuse."""
    model, fields = _SIZES[kind]
    for ordinary in ORDINARY:
        heads = {name for name in ("num_kv_heads", "head_dim") if "mla" in ordinary}
        sizes = {name: value for name, value in model.items() if name not in heads}
        case = replace(Case(options=options), model={**ordinary, **sizes}, **fields)
        if is_served(mixer, case):
            return case
    return None


def _other_options(mixer: type[Mixer], overrides: Overrides | None) -> list[dict[str, Any]]:
    """Those of ordinary cases, with the whole numbers among them at the largest of a few values that is served."""
    defaults = default_options(mixer.Config, overrides)
    found: list[dict[str, Any]] = []
    for ordinary in ordinary_cases(mixer, overrides):
        options = dict(ordinary.options)
        for name in mixer.Config.model_fields:
            whole = [value for value in few_values(mixer.Config, name) if type(value) is int]
            for value in sorted(whole, reverse=True) if name not in options else []:
                if _large_case(mixer, "varied", {**options, name: value}) is not None:
                    options[name] = value
                    break
        if options not in (defaults, *found):
            found.append(options)
    return found
