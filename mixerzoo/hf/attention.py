"""Attention sublayers as transformers and serving engines know them.

A step that owns keys or values has the cache layer of its number; one that borrows reads what the owner's gave
back in this forward. Letters in shapes: B batch, T tokens of this call, S tokens that attention sees, D hidden size,
H query heads, G key/value heads, d head_dim.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mixerzoo.errors import MixerError
from mixerzoo.hf.configuration import SLIDING, MixerZooConfig
from mixerzoo.hf.keywords import use_pages
from mixerzoo.mixer import AttentionInputs, DepthEntries, State
from mixerzoo.model import (
    Attention,
    KeysAndValues,
    LatentAttention,
    ModelConfig,
    Past,
    Turn,
    compute_dtype,
)
from mixerzoo.ops import attention_with_depth


class HubPast(Past):
    """A `transformers.Cache`, pages of one, or nothing; attention over it is `transformers`' own.

    Args:
        config: of the model.
        cache: what came before.
        pages: the same where an engine keeps it behind the attention function.
        masks: by layer type.
        later_runs: of looped layers, by step.
        kwargs: for the attention function.
    """

    def __init__(
        self,
        config: MixerZooConfig,
        cache: Cache | None,
        pages: PagedAttentionCache | None,
        masks: dict[str, Any],
        later_runs: nn.ModuleDict,
        kwargs: dict[str, Any],
    ) -> None:
        self.cache, self.pages, self.stores = cache, pages, cache is not None
        self._config, self._masks, self._later_runs, self._kwargs = config, masks, later_runs, kwargs

    def later_run(self, step: int) -> "LaterRun | None":
        """What calls the attention function of a step; None where the attention module does."""
        return cast("LaterRun", self._later_runs[str(step)]) if str(step) in self._later_runs else None

    def arguments(self, step: int) -> tuple[Any, dict[str, Any]]:
        """The mask of a step, and what else its attention function is given."""
        kind = self._config.layer_types[step]
        window = self._config.sliding_window if kind == SLIDING else None
        return self._masks[kind], {"sliding_window": window, **self._kwargs}

    def store(self, slot: int | None, k: Tensor | None, v: Tensor | None) -> KeysAndValues:
        if self.cache is None or slot is None:
            return KeysAndValues(k, v)
        if k is not None and v is not None:
            return KeysAndValues(*update(self.cache, k, v, slot))
        alone = v if k is None else k
        if alone is None:
            return KeysAndValues(None, None)
        # Some caches count their tokens in the keys, and none expects a tensor to be missing.
        first, second = alone.tensor_split(2, dim=-1)
        both = torch.cat(update_padded(self.cache, first, second, slot), dim=-1)
        return KeysAndValues(None, both) if k is None else KeysAndValues(both, None)

    def extend_tail(self, slot: int, new: Tensor, length: int) -> Tensor:
        """Take the new tokens' vectors [B, T, width] into the tail; the last ``length`` before them come back.

        Args:
            slot: number of the tail's cache layer.
            new: the vectors.
            length: n.

        Returns:
            [B, n, width], with zeros where a sequence has no such token.
        """
        if self.cache is None:
            return new.new_zeros(new.size(0), length, new.size(2))
        # Static caches count in a tensor, in place.
        seen = torch.as_tensor(self.cache.get_seq_length(slot), device=new.device).clone()
        held = self.store(slot, new.unsqueeze(1), None).k
        assert held is not None
        # What comes back ends with the new tokens, or is room that is filled from its beginning.
        first_new = seen.clamp(max=held.size(2) - new.size(1))
        places = first_new + torch.arange(-length, 0, device=new.device)
        past = held[:, 0].index_select(1, places.clamp(min=0))
        return past.masked_fill((places < 0).unsqueeze(-1), 0)

    def borrow(self, step: int, x: Tensor | AttentionInputs) -> None:
        """Tell the cache that a step without keys and values of its own has seen the tokens of x [B, T, D]."""
        if self.cache is not None:
            hold_nothing(self.cache, step, x.q if isinstance(x, AttentionInputs) else x)

    def attend(self, step: int, q: Tensor, k: Tensor, v: Tensor, scale: float, depth: DepthEntries | None) -> Tensor:
        raise NotImplementedError("the attention modules call the attention function themselves")

    def weigh(self, step: int, q: Tensor, k: Tensor, scale: float) -> Tensor:
        raise NotImplementedError("the attention modules call the attention function themselves")


def update(cache: Cache, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """`Cache.update`, of a layer that need not come next after one that holds something.

    A cache that keeps its layers elsewhere brings each back when the one before is updated, which a borrower's is not.
    """
    if cache.offloading and step < len(cache.layers):
        cache.layers[step].prefetch()  # type: ignore[no-untyped-call]  # transformers gives it no types
    return cache.update(k, v, step)


def update_padded(cache: Cache, k: Tensor, v: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """`Cache.update` with tensors of any width.

    A quantised cache takes numbers in groups, which keys and values of heads fill, but not latents and halves.
    """
    group = getattr(cache.layers[step], "q_group_size", 1) if step < len(cache.layers) else 1
    filled_k, filled_v = (F.pad(x, (0, -x.size(-1) % group)) for x in (k, v))
    held_k, held_v = update(cache, filled_k, filled_v, step)
    return held_k[..., : k.size(-1)], held_v[..., : v.size(-1)]


def hold_nothing(cache: Cache, step: int, x: Tensor) -> None:
    """Tell a cache that a step which borrows all that it reads has seen the tokens of ``x`` [B, T, D].

    Else assisted decoding could not take tokens back from a layer with a window, which expects to hold something.
    """
    if step < len(cache.layers) and isinstance(cache.layers[step], DynamicSlidingWindowLayer):
        nothing = x.new_empty(x.size(0), 1, x.size(1), 0)
        update(cache, nothing, nothing, step)


class MixerZooAttention(Attention):
    """The attention sublayer of one physical layer, as transformers and serving engines know them.

    Args:
        config: of the model.
        sizes: the same for the decoder.
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

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor | AttentionInputs, turn: Turn[HubPast]
    ) -> tuple[State, Tensor, KeysAndValues, Tensor | None]:
        """As `Attention.forward`, and the weights if the attention implementation gives them.

        vLLM reads this source: it fuses the three projections and looks for the one call of the interface.
        """
        past, step = turn.run.past, turn.site.step
        attention_mask, kwargs = past.arguments(step)
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
            query, key, value = self.project(hidden_states, turn.norm, turn.owns_k, turn.owns_v)
        if not (turn.owns_k or turn.owns_v):
            past.borrow(step, hidden_states)
        state, query, key, value, depth = turn.mix(self, hidden_states, query, key, value)
        own = turn.store(key, value)
        key, value = turn.attended(own, query.dtype)
        if past.pages is not None:
            key, value = use_pages(past.pages, key, value, step, kwargs)
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        weights, later_run = None, past.later_run(step)
        if depth is not None:
            output = eager_attention_with_depth(self, query, key, value, attention_mask, depth, past.pages)
        elif later_run is not None:
            output, weights = later_run(query, key, value, attention_mask, **kwargs)
        else:
            output, weights = attention_interface(
                self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
            )
        output = self.o_proj(output.reshape(query.size(0), query.size(2), -1))
        return state, output, own, weights


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
        sizes: the same for the decoder.
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

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor | AttentionInputs, turn: Turn[HubPast]
    ) -> tuple[State, Tensor, KeysAndValues, Tensor | None]:
        """As `MixerZooAttention.forward`; here too vLLM looks for the one call of the interface."""
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            output, weights = attention_interface(self, q, k, v, mask, dropout=0.0, scaling=self.scaling, **kwargs)
            return output, weights

        past = LatentPast(self, turn.run.past, attend)
        if not turn.owns_k:
            turn.run.past.borrow(turn.site.step, hidden_states)
        given: Turn[Past] = turn._replace(run=turn.run._replace(past=past))  # type: ignore[arg-type]
        return *super().forward(hidden_states, given), past.weights


class LatentPast(Past):
    """The past as latent attention reads it.

    Args:
        attention: the module that attends.
        past: of the forward.
        attend: its attention function, of queries, keys and values of every head and a mask.
    """

    def __init__(self, attention: MixerZooLatentAttention, past: HubPast, attend: Callable[..., Any]) -> None:
        self._attention, self._past, self._attend, self.stores = attention, past, attend, past.stores
        #: Of the latest attention, if its implementation gives them.
        self.weights: Tensor | None = None

    def store(self, slot: int | None, k: Tensor | None, v: Tensor | None) -> KeysAndValues:
        """Keep latents k, and in place of v the weights [B, H, T, N] of values that are summed over steps."""
        cache = self._past.cache
        if cache is None or slot is None or k is None or v is None:
            return KeysAndValues(k, v)
        if not v.size(-1):
            return KeysAndValues(self._past.store(slot, k, None).k, v)
        # Caches expect as many heads of values as of keys: one.
        flat = v.transpose(1, 2).flatten(2).unsqueeze(1).to(k.dtype)
        latents, flat = update_padded(cache, k, flat, slot)
        shares = flat.view(*flat.shape[:1], *flat.shape[2:3], v.size(1), -1).transpose(1, 2)
        return KeysAndValues(latents, shares)

    def attend(self, step: int, q: Tensor, k: Tensor, v: Tensor, scale: float, depth: DepthEntries | None) -> Tensor:
        attention, pages, width = self._attention, self._past.pages, self._attention.value_dim
        attention_mask, kwargs = self._past.arguments(step)
        if pages is not None:
            # Pages have one width.
            v = F.pad(v, (0, k.size(-1) - width))
        k, v = (x.expand(-1, attention.num_heads, -1, -1) for x in (k, v))
        if pages is not None:
            k, v = use_pages(pages, k, v, step, kwargs)
        attend = self._past.later_run(step) or self._attend
        heads, self.weights = attend(q, k, v, attention_mask, **kwargs)
        per_head: Tensor = heads.reshape(q.size(0), q.size(2), attention.num_heads, -1).transpose(1, 2)
        return per_head if pages is None else per_head[..., :width]

    def weigh(self, step: int, q: Tensor, k: Tensor, scale: float) -> Tensor:
        config = self._attention.config
        if config._attn_implementation != "eager":
            raise MixerError(
                f"{config.needs_eager}, which over a cache the attention implementation "
                f"{config._attn_implementation!r} does not compute; set it to 'eager'"
            )
        attention_mask, _ = self._past.arguments(step)
        self.weights = eager_weights(q, k.expand(-1, self._attention.num_heads, -1, -1), attention_mask, scale)
        return self.weights


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
    return attention_with_depth(query, key, value, visible, module.scaling, *depth.each()).transpose(1, 2)
