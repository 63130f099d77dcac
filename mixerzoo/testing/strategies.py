"""Hypothesis strategies: decoder sizes, chunkings, whole cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from mixerzoo.mixer import Mixer
from mixerzoo.model import ModelConfig
from mixerzoo.testing.case import VOCAB_SIZE, Case
from mixerzoo.testing.drawn_options import Overrides, options
from mixerzoo.testing.refusal import refusal


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
        # The widest is wider than what a cache holds of a token with any of the others.
        "v_head_dim": st.sampled_from([2, 5, 11]),
        "q_lora_rank": st.sampled_from([None, 4]),
    }
)


#: Numbers of tokens. Most are small; the long ones fill strides and blocks along the sequence, and take most of the
#: time. Hypothesis likes the ends of a list best, and with a single token there is little to get wrong.
_LENGTHS = (2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 4, 3, 5, 6, 7, 12, 40, 24, 8, 9)


@st.composite
def chunkings(draw: st.DrawFn, max_tokens: int = max(_LENGTHS)) -> tuple[int, ...]:
    """Any split of up to ``max_tokens`` tokens into pieces.

    Args:
        draw: given by Hypothesis.
        max_tokens: how many tokens at most.
    """
    left = draw(st.sampled_from([length for length in _LENGTHS if length <= max_tokens]))
    pieces = []
    while left:
        pieces.append(draw(st.integers(1, left)))
        left -= pieces[-1]
    return tuple(pieces)


def cases(
    mixer: type[Mixer],
    overrides: Overrides | None = None,
    on_refusal: Callable[[str], None] = lambda words: None,
) -> st.SearchStrategy[Case]:
    """A case on which the mixer can be built.

    Args:
        mixer: the mixer under test.
        overrides: strategies for some of its options.
        on_refusal: told in which words the mixer refused what was drawn.

    Raises:
        MixerzooError: nothing can be drawn for an option.
    """
    return _cases(mixer, options(mixer.Config, overrides), on_refusal)


@st.composite
def _cases(
    draw: st.DrawFn,
    mixer: type[Mixer],
    drawn_options: st.SearchStrategy[dict[str, Any]],
    on_refusal: Callable[[str], None],
) -> Case:
    model = draw(models())
    chosen = draw(drawn_options)
    config = ModelConfig.model_validate({**model, "vocab_size": VOCAB_SIZE})
    if (words := refusal(mixer, config, chosen)) is not None:
        on_refusal(words)
        assume(False)
    return Case(
        model=model,
        options=chosen,
        batch_size=draw(st.integers(1, 3)),
        chunks=draw(chunkings()),
        seed=draw(st.integers(0, 3)),
        pick=draw(st.integers(0, 20)),
        training=draw(st.sampled_from([True, False])),
    )
