"""Hypothesis strategies: decoder sizes, mixer options, chunkings, whole cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import torch
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import assume
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mixerzoo.decoder import Decoder
from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer, MixerConfig
from mixerzoo.model_config import ModelConfig
from mixerzoo.testing.case import VOCAB_SIZE, Case

#: Option → strategy of its values, in place of what its type suggests.
Overrides = Mapping[str, st.SearchStrategy[Any]]


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a small `ModelConfig`: heads, groups, latent attention, norms, ties and loops of all kinds.

    Args:
        draw: given by Hypothesis.
    """
    num_kv_heads = draw(st.sampled_from([1, 2, 3]))
    num_layers = draw(st.sampled_from([1, 2, 3, 4, 4, 5]))
    prelude = draw(st.integers(0, num_layers - 1))
    coda = draw(st.integers(0, num_layers - 1 - prelude))
    count = draw(st.sampled_from([1, 1, 1, 2, 3]))
    model = {
        "hidden_size": draw(st.sampled_from([8, 12])),
        "intermediate_size": draw(st.sampled_from([8, 20])),
        "num_layers": num_layers,
        "num_heads": num_kv_heads * draw(st.sampled_from([1, 2])),
        "tie_embeddings": draw(st.booleans()),
        "loop": {"prelude": prelude, "coda": coda, "count": count} if count > 1 else {},
    }
    if draw(st.sampled_from([False, False, True])):
        return model | {"attention": "mla", "mla": draw(_LATENT)}
    return model | {
        "num_kv_heads": num_kv_heads,
        "head_dim": draw(st.sampled_from([2, 4, 8])),
        "qk_norm": draw(st.booleans()),
        "k_norm": draw(st.sampled_from(["pre_rope", "post_rope"])),
    }


#: Sizes of latent attention.
_LATENT = st.fixed_dictionaries(
    {
        "kv_lora_rank": st.sampled_from([3, 6]),
        "qk_nope_head_dim": st.sampled_from([2, 3]),
        "qk_rope_head_dim": st.sampled_from([2, 4]),
        "v_head_dim": st.sampled_from([2, 5]),
        "q_lora_rank": st.sampled_from([None, 4]),
    }
)


def options(config: type[MixerConfig], overrides: Overrides | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Options of a mixer, drawn from the types and bounds of its ``Config``.

    An option with ``examples`` takes one of them. Options that their types cannot describe keep their default;
    ``overrides`` says better.

    Args:
        config: the mixer's ``Config``.
        overrides: strategies for some of the options.
    """
    overrides = overrides or {}
    drawn = {name: overrides.get(name, _values(info)) for name, info in config.model_fields.items()}

    def valid(chosen: dict[str, Any]) -> bool:
        try:
            config.model_validate(chosen)
        except ValidationError:
            return False
        return True

    return st.fixed_dictionaries({n: s for n, s in drawn.items() if s is not None}).filter(valid)


def _values(info: FieldInfo) -> st.SearchStrategy[Any] | None:
    default = st.nothing() if info.is_required() else st.just(info.get_default(call_default_factory=True))
    if info.examples:
        return default | st.sampled_from(info.examples)
    low: Any = 0
    high: Any = None
    for rule in info.metadata:
        if isinstance(rule, Ge):
            low = rule.ge
        elif isinstance(rule, Le):
            high = rule.le
        elif isinstance(rule, Gt | Lt):
            # An open bound: keep away from it by a step that suits whole numbers and fractions alike.
            bound: Any = rule.gt if isinstance(rule, Gt) else rule.lt
            step = 1 if info.annotation is int else 0.125
            low, high = (bound + step, high) if isinstance(rule, Gt) else (low, bound - step)
    by_type = _of_type(info.annotation, low, high)
    if by_type is None:
        return None if not info.is_required() else default
    # A default that comes by itself is not drawn more often: the other values would be left too few cases.
    return by_type if _comes_by_itself(info.annotation, info.default, low) else default | by_type


def _comes_by_itself(annotation: Any, default: Any, low: Any) -> bool:
    """Whether `_of_type` draws the default as often as any other value."""
    if annotation is int:
        return default in range(low, low + 6)
    if annotation is bool or get_origin(annotation) is Literal:
        return True
    if annotation is type(None):
        return default is None
    return any(_comes_by_itself(part, default, low) for part in get_args(annotation))


def _of_type(annotation: Any, low: Any, high: Any) -> st.SearchStrategy[Any] | None:
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(low, low + 5 if high is None else min(high, low + 5))
    if annotation is float:
        return st.floats(low, low + 2.0 if high is None else high, width=16)
    if annotation is type(None):
        return st.none()
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    parts = [_of_type(part, low, high) for part in get_args(annotation)]
    known = [part for part in parts if part is not None]
    return st.one_of(known) if known and len(known) == len(parts) else None


@st.composite
def chunkings(draw: st.DrawFn, max_tokens: int = 9) -> tuple[int, ...]:
    """Any split of up to ``max_tokens`` tokens into pieces.

    Args:
        draw: given by Hypothesis.
        max_tokens: how many tokens at most.
    """
    left = draw(st.integers(1, max_tokens))
    pieces = []
    while left:
        pieces.append(draw(st.integers(1, left)))
        left -= pieces[-1]
    return tuple(pieces)


@st.composite
def cases(draw: st.DrawFn, mixer: type[Mixer], overrides: Overrides | None = None) -> Case:
    """A case on which the mixer can be built.

    Args:
        draw: given by Hypothesis.
        mixer: the mixer under test.
        overrides: strategies for some of its options.
    """
    model = draw(models())
    chosen = draw(options(mixer.Config, overrides))
    config = ModelConfig.model_validate({**model, "vocab_size": VOCAB_SIZE})
    try:
        with torch.device("meta"):
            Decoder(config, mixer, mixer.Config.model_validate(chosen))
    except MixerzooError:
        assume(False)
    except Exception:  # noqa: BLE001  the check that builds the decoder meets it again, with a case in hand
        pass
    return Case(
        model=model,
        options=chosen,
        batch_size=draw(st.integers(1, 3)),
        chunks=draw(chunkings()),
        seed=draw(st.integers(0, 3)),
        pick=draw(st.integers(0, 20)),
        training=draw(st.sampled_from([True, False])),
    )
