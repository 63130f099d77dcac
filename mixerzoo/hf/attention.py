"""Attention sublayers as transformers and serving engines know them.

A step that owns keys or values has the cache layer of its number; one that borrows reads what the owner's gave
back in this forward. Letters in shapes: B batch, T tokens of this call, S tokens that attention sees, D hidden size,
H query heads, G key/value heads, d head_dim.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mixerzoo.errors import MixerError
from mixerzoo.hf.configuration import MixerZooConfig
from mixerzoo.hf.keywords import use_pages
from mixerzoo.mixer import AttentionInputs, DepthEntries, Site, State
from mixerzoo.model import (
    Attention,
    Borrowed,
    KeysAndValues,
    LatentAttention,
    LatentFunctions,
    ModelConfig,
    Rotary,
    attention_with_depth,
    compute_dtype,
)


class Turn(NamedTuple):
    """What an attention module is told of the step that runs it.

    Attributes:
        mixed: `Stack.mixed` of the model.
        depth_entries: `Stack.depth_entries` of the model.
        attend_to_latents: of the model.
        state: the mixer's.
        site: where.
        borrowed: of earlier steps.
        owns_k: whether the step has keys of its own.
        owns_v: whether it has values of its own.
        rotary: RoPE of the tokens.
        later_run: what calls the attention function; None where the attention module does.
    """

    mixed: Callable[..., Any]
    depth_entries: Callable[..., Any]
    attend_to_latents: Callable[..., Any]
    state: State
    site: Site
    borrowed: Borrowed
    owns_k: bool
    owns_v: bool
    rotary: Rotary
    later_run: "LaterRun | None"

    def owned(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What of these the step has of its own; it borrows the others."""
        return q, k if self.owns_k else None, v if self.owns_v else None

    def mix(
        self, attention: Attention, q: Tensor, k: Tensor | None, v: Tensor | None
    ) -> tuple[State, Tensor, Tensor | None, Tensor | None, DepthEntries | None]:
        """The mixer's state, what is attended to and stored, and the entries that join the softmax."""
        state, q, k, v = self.mixed(attention, self.state, self.site, q, k, v, self.rotary)
        return state, q, k, v, self.depth_entries(state, self.site, q, self.rotary)

    def store(self, cache: Cache, k: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Put the step's own keys and values into its cache layer; all that the layer holds comes back."""
        step = self.site.step
        if k is not None and v is not None:
            return cache.update(k, v, step)
        alone = v if k is None else k
        if alone is None:
            return None, None
        # Some caches count their tokens in the keys, and none expects a tensor to be missing.
        first, second = alone.tensor_split(2, dim=-1)
        both = torch.cat(update_padded(cache, first, second, step), dim=-1)
        return (None, both) if k is None else (both, None)


def update_padded(cache: Cache, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """`Cache.update` with tensors of any width.

    A quantised cache takes numbers in groups, which keys and values of heads fill, but not latents and halves.
    """
    group = getattr(cache.layers[step], "q_group_size", 1) if step < len(cache.layers) else 1
    filled_k, filled_v = (F.pad(x, (0, -x.size(-1) % group)) for x in (k, v))
    held_k, held_v = cache.update(filled_k, filled_v, step)
    return held_k[..., : k.size(-1)], held_v[..., : v.size(-1)]


def hold_nothing(cache: Cache, step: int, x: Tensor) -> None:
    """Tell a cache that a step which borrows all that it reads has seen the tokens of ``x`` [B, T, D].

    Else assisted decoding could not take tokens back from a layer with a window, which expects to hold something.
    """
    if step < len(cache.layers) and isinstance(cache.layers[step], DynamicSlidingWindowLayer):
        nothing = x.new_empty(x.size(0), 1, x.size(1), 0)
        cache.update(nothing, nothing, step)


class MixerZooAttention(Attention):
    """The attention sublayer of one physical layer, as transformers and serving engines know them.

    Args:
        config: of the model.
        sizes: the same for the skeleton.
        layer_idx: the first step that runs the layer.
        has_k: whether any run of the layer makes keys of its own.
        has_v: likewise for values.
        joint: whether queries, keys and values are made of one input. All of them then are in every run, for vLLM
            makes one projection of three, which cannot be told what a run borrows.
    """

    is_causal = True

    def __init__(
        self, config: MixerZooConfig, sizes: ModelConfig, layer_idx: int, has_k: bool, has_v: bool, joint: bool
    ) -> None:
        super().__init__(sizes, has_k, has_v)
        self.config = config
        self.layer_idx = layer_idx
        self.joint = joint
        self.num_key_value_groups = sizes.num_heads // sizes.resolved_kv_heads

    def forward(
        self,
        hidden_states: Tensor | AttentionInputs,
        turn: Turn,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        pages: PagedAttentionCache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, State, KeysAndValues]:
        """The output [B, T, D], the weights if the attention implementation gives them, and what `Stack.attend` gives.

        vLLM reads this source: it fuses the three projections and looks for the one call of the interface.
        """
        # A name of their own: vLLM does not fuse where one that is assigned between the calls may, for all that it can
        # see, share memory with the input.
        if self.joint:
            projected = (
                self.heads(self.q_proj(hidden_states)),
                self.heads(self.k_proj(hidden_states)),
                self.heads(self.v_proj(hidden_states)),
            )
            query, key, value = turn.owned(*projected)
        else:
            query, key, value = self.project(hidden_states, turn.owns_k, turn.owns_v)
        state, query, key, value, depth = turn.mix(self, query, key, value)
        if past_key_values is not None:
            key, value = turn.store(past_key_values, key, value)
        key, value = turn.borrowed.beside(key, value)
        read = KeysAndValues(key, value)
        key, value = key.to(query.dtype), value.to(query.dtype)
        if pages is not None:
            key, value = use_pages(pages, key, value, turn.site.step, kwargs)
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        weights = None
        if depth is not None:
            output = eager_attention_with_depth(self, query, key, value, attention_mask, depth, pages)
        elif turn.later_run is not None:
            output, weights = turn.later_run(query, key, value, attention_mask, **kwargs)
        else:
            output, weights = attention_interface(
                self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
            )
        output = self.o_proj(output.reshape(query.size(0), query.size(2), -1))
        return output, weights, state, read


class LaterRun(nn.Module):
    """The attention function of a later run of a looped layer.

    Caches and serving engines tell steps apart by the ``layer_idx`` of the module that calls the attention function.

    Args:
        attention: the layer's, whose weights every run has.
        step: the number of this run.
    """

    is_causal = True

    def __init__(self, attention: "MixerZooAttention | MixerZooLatentAttention", step: int) -> None:
        super().__init__()
        self.config = attention.config
        self.layer_idx = step
        self.scaling = attention.scaling
        self.num_key_value_groups = attention.num_key_value_groups

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Output and weights, if it gives them, of the attention implementation."""
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        output, weights = attention_interface(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return output, weights


class MixerZooLatentAttention(LatentAttention):
    """The same with latent attention.

    A cache holds latents, and the weights of values that a mixer sums over steps. Where an engine keeps keys and
    values behind the attention function, it is given those of every head.

    Args:
        config: of the model.
        sizes: the same for the skeleton.
        layer_idx: the first step that runs the layer.
        has_latent: whether any run of the layer makes latents of its own.
    """

    #: Keys have as many heads as queries, or are expanded to them.
    num_key_value_groups = 1
    is_causal = True

    def __init__(self, config: MixerZooConfig, sizes: ModelConfig, layer_idx: int, has_latent: bool) -> None:
        super().__init__(sizes, has_latent)
        self.config = config
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor | AttentionInputs,
        turn: Turn,
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        pages: PagedAttentionCache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, State, KeysAndValues]:
        """As `MixerZooAttention.forward`."""
        width = self.value_dim
        weights: Tensor | None = None

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            nonlocal weights
            if pages is not None:
                # Pages have one width.
                value = F.pad(value, (0, key.size(-1) - width))
            key, value = (x.expand(-1, self.num_heads, -1, -1) for x in (key, value))
            if pages is not None:
                key, value = use_pages(pages, key, value, turn.site.step, kwargs)
            attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention
            )
            if turn.later_run is not None:
                heads, weights = turn.later_run(query, key, value, attention_mask, **kwargs)
            else:
                heads, weights = attention_interface(
                    self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
                )
            per_head: Tensor = heads.reshape(query.size(0), query.size(2), self.num_heads, -1).transpose(1, 2)
            return per_head if pages is None else per_head[..., :width]

        def weigh(query: Tensor, latents: Tensor) -> Tensor:
            nonlocal weights
            weights = eager_weights(query, latents.expand(-1, self.num_heads, -1, -1), attention_mask, self.scaling)
            return weights

        def append(latents: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
            assert past_key_values is not None
            # Caches expect as many heads of values as of keys: one.
            flat = shares.transpose(1, 2).flatten(2).unsqueeze(1).to(latents.dtype) if shares.size(-1) else None
            if flat is None:
                stored, _ = turn.store(past_key_values, latents, None)
                assert stored is not None
                return stored, shares
            stored, flat = update_padded(past_key_values, latents, flat, turn.site.step)
            return stored, flat.view(*flat.shape[:1], *flat.shape[2:3], self.num_heads, -1).transpose(1, 2)

        functions = LatentFunctions(attend, weigh, None if past_key_values is None else append)
        state, output, read = turn.attend_to_latents(
            self, turn.state, hidden_states, turn.borrowed, turn.site, turn.rotary, functions
        )
        return output, weights, state, read


def eager_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, in float64 for float64 inputs.

    Args:
        module: the attention module.
        query: [B, H, T, d].
        key: [B, G, S, d].
        value: [B, G, S, d].
        attention_mask: added to the scores, or None.
        scaling: factor of the scores.
        kwargs: of other attention functions.

    Returns:
        The output [B, T, H, d] and the weights [B, H, T, S].
    """
    groups = module.num_key_value_groups
    weights = eager_weights(query, key.repeat_interleave(groups, dim=1), attention_mask, scaling)
    return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), weights


def eager_weights(query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float) -> Tensor:
    """Weights [B, H, T, S] of the same with keys [B, H, S, d] of every head."""
    scores = (query @ key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    return scores.softmax(-1, dtype=compute_dtype(scores)).to(query.dtype)


def eager_attention_with_depth(
    module: MixerZooAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    depth: DepthEntries,
    pages: PagedAttentionCache | None,
) -> Tensor:
    """The same with entries along depth, [B, T, H, d]; other arguments as there.

    Raises:
        MixerError: the keys and values of the past are not in a `transformers.Cache`.
    """
    if module.config._attn_implementation != "eager" or pages is not None:
        raise MixerError(
            f"mixer {module.config.mixer['name']!r} joins entries along depth to the softmax, which the attention "
            f"implementation {module.config._attn_implementation!r} does not compute; use 'eager', and no paged cache"
        )
    visible = None if attention_mask is None else attention_mask == 0
    return attention_with_depth(query, key, value, visible, module.scaling, *depth).transpose(1, 2)
