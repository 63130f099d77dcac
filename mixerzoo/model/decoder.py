"""The decoder over our own cache: attention, masks, the head, and the initial weights.

Parameter names are those of Hugging Face Llama and Qwen3; the mixer's live under ``model.mixer``.
Letters in shapes: B batch, T tokens of this call, D hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixerzoo.errors import CacheError, MixerError
from mixerzoo.mixer import AttentionInputs, Context, Mixer, MixerConfig, Plan, Site, State
from mixerzoo.model.backends import (
    AttentionMask,
    BackendName,
    Visibility,
    attention_weights,
    attention_with_depth,
    backend_function,
    check_backend,
    make_mask,
)
from mixerzoo.model.cache import KVCache
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.inputs import check_inputs
from mixerzoo.model.latent_attention import LatentAttention, LatentFunctions, attend_to_latents
from mixerzoo.model.layer import Attention, Layer, Rotary
from mixerzoo.model.stack import Borrowed, KeysAndValues, Stack


class _Forward(NamedTuple):
    """What all layers of one forward share."""

    rotary: Rotary
    masks: dict[int | None, AttentionMask]
    cache: KVCache | None


class Backbone(Stack):
    """Tokens in, normed hidden states out, over a `KVCache`.

    Args:
        config: sizes and conventions.
        mixer: the mixer that joins the layers.
    """

    def __init__(self, config: ModelConfig, mixer: Mixer) -> None:
        super().__init__()
        latent = config.attention == "mla"
        self.assemble(
            config,
            mixer,
            lambda _, has_k, has_v: LatentAttention(config, has_k) if latent else Attention(config, has_k, has_v),
        )
        self.activation_checkpointing = False
        # Entries along depth join the softmax in the written-out attention only.
        self._backend: BackendName = "eager" if mixer.defines("depth_kv") else config.attention_backend

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        left_padding: Tensor | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Normed hidden states [B, T, D], or [B, 1, D] with ``last_only``; arguments as in `Decoder.forward`."""
        x = self.scaled(self.embed_tokens(tokens))
        shared = self._prepare(x, cache, left_padding, documents)
        num_new = tokens.size(1)
        recompute = self.activation_checkpointing and torch.is_grad_enabled() and cache is None
        narrows = last_only and documents is None and num_new > 1
        x = self.walk(
            x,
            Context(tokens),
            shared,
            # Non-re-entrant: the re-entrant variant loses the gradients of tensors inside the state.
            recompute=partial(checkpoint, use_reentrant=False) if recompute else None,
            narrow=(lambda: self._for_last_token(shared)) if narrows else None,
        )
        if cache is not None:
            cache.advance(num_new)
        hidden: Tensor = self.norm(x[:, -1:] if last_only else x)
        return hidden

    def _prepare(
        self, x: Tensor, cache: KVCache | None, left_padding: Tensor | None, documents: Tensor | None
    ) -> _Forward:
        num_new = x.size(1)
        if cache is None:
            queries = torch.arange(num_new, device=x.device)
            positions = queries[None]
        else:
            if cache.plan != self.plan:
                raise CacheError("this cache was made for another plan; use decoder.new_cache()")
            if documents is not None:
                raise CacheError("packed documents cannot be decoded through a cache; pass cache=None")
            queries = cache.positions(num_new)
            positions = queries[None]
        if left_padding is not None:
            positions = (positions - left_padding[:, None]).clamp(min=0)
        if documents is not None:
            positions = _positions_in_documents(documents)
        masks = self._masks(queries, num_new, cache, left_padding, documents)
        return _Forward(self.rotary(positions, x), masks, cache)

    def _for_last_token(self, shared: _Forward) -> _Forward:
        """What the layers share once only the last of the new tokens goes on."""
        # The positions of keys stay those of the beginning: by now windowed slots have dropped what left them.
        rules = {window: mask.visibility for window, mask in shared.masks.items()}
        masks = {
            window: self._mask(rule._replace(queries=rule.queries[-1:], square=False), shared.cache)
            for window, rule in rules.items()
        }
        rotary = Rotary(shared.rotary.cos[:, :, -1:], shared.rotary.sin[:, :, -1:])
        return _Forward(rotary, masks, shared.cache)

    def _masks(
        self,
        queries: Tensor,
        num_new: int,
        cache: KVCache | None,
        left_padding: Tensor | None,
        documents: Tensor | None,
    ) -> dict[int | None, AttentionMask]:
        """A mask for each window of the plan."""
        compiled = torch.compiler.is_compiling()
        masks: dict[int | None, AttentionMask] = {}
        for window in {self.plan.window(step): None for step in range(len(self.plan.order))}:
            square = cache is None or (not compiled and cache.length == 0 and window is None)
            keys = queries if cache is None else cache.key_positions(window, num_new)
            masks[window] = self._mask(Visibility(queries, keys, window, left_padding, documents, square), cache)
        return masks

    def _mask(self, rule: Visibility, cache: KVCache | None) -> AttentionMask:
        """A rule in the form that the backend reads."""
        sees_all = rule.queries.size(0) == 1 and rule.window is None and rule.padding is None and rule.documents is None
        if cache is not None and cache.max_length is not None and torch.compiler.is_compiling():
            sees_all = False
        return make_mask(rule, self._backend, sees_all)

    def attend(
        self,
        layer: Layer,
        state: State,
        x: Tensor | AttentionInputs,
        borrowed: Borrowed,
        site: Site,
        shared: _Forward,
    ) -> tuple[State, Tensor, KeysAndValues]:
        attention = self._latent_attention if self.model_config.attention == "mla" else self._grouped_attention
        return attention(layer, state, x, borrowed, site, shared)

    def _grouped_attention(
        self,
        layer: Layer,
        state: State,
        x: Tensor | AttentionInputs,
        borrowed: Borrowed,
        site: Site,
        shared: _Forward,
    ) -> tuple[State, Tensor, KeysAndValues]:
        attn, step = layer.self_attn, site.step
        assert isinstance(attn, Attention)
        q, k, v = attn.project(x, self.plan.owns_k(step), self.plan.owns_v(step))
        state, q, k, v = self.mixed(attn, state, site, q, k, v, shared.rotary)
        if shared.cache is not None and not (k is None and v is None):
            k, v = shared.cache.append(step, k, v)
        k, v = borrowed.beside(k, v)
        mask = shared.masks[self.plan.window(step)]
        depth = self.depth_entries(state, site, q, shared.rotary)
        if depth is None:
            heads = backend_function(self._backend)(q, k.to(q.dtype), v.to(q.dtype), mask, attn.scaling)
        else:
            heads = attention_with_depth(q, k.to(q.dtype), v.to(q.dtype), mask.dense, attn.scaling, *depth)
        return state, attn.output(heads), KeysAndValues(k, v)

    def _latent_attention(
        self,
        layer: Layer,
        state: State,
        x: Tensor | AttentionInputs,
        borrowed: Borrowed,
        site: Site,
        shared: _Forward,
    ) -> tuple[State, Tensor, KeysAndValues]:
        attn, cache = layer.self_attn, shared.cache
        assert isinstance(attn, LatentAttention)
        mask = shared.masks[self.plan.window(site.step)]
        attend = backend_function(self._backend)

        def append(latents: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            assert cache is not None
            both = cache.append(site.step, latents, weights)
            assert both[0] is not None
            assert both[1] is not None
            return both[0], both[1]

        functions = LatentFunctions(
            attend=lambda q, k, v: attend(q, k, v, mask, attn.scaling),
            weigh=lambda q, k: attention_weights(q, k, mask, attn.scaling),
            append=None if cache is None else append,
        )
        return attend_to_latents(self, attn, state, x, borrowed, site, shared.rotary, functions)


class Decoder(nn.Module):
    """A decoder language model: the skeleton, with one mixer.

    Args:
        config: sizes and conventions; its ``vocab_size`` must be set.
        mixer: class of the mixer.
        mixer_config: its options; default: all defaults.

    Raises:
        MixerError: the mixer cannot work on this decoder.
    """

    def __init__(self, config: ModelConfig, mixer: type[Mixer], mixer_config: MixerConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.shape = config.shape()
        self.model = Backbone(config, mixer(mixer_config or mixer.Config(), self.shape))
        self.lm_head = nn.Linear(config.hidden_size, self.shape.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head share the embedding's weight if the configuration says so.

        Moving a decoder off the meta device gives each of them storage of its own, so it is called then too.
        """
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def mixer(self) -> Mixer:
        """The mixer that joins the layers."""
        return self.model.mixer

    @property
    def plan(self) -> Plan:
        """Order of layers and cache slots."""
        return self.model.plan

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        left_padding: Tensor | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: int64 [B, T].
            cache: what came before; it is read, filled and advanced. None: nothing came before.
            left_padding: int64 [B], how many tokens on the left of each row are padding. With a cache,
                pass the same counts at every call.
            documents: int64 [B, T], the document of each token of a packed batch, ascending: tokens see
                only their own document, and positions restart with it. Not together with a cache.
            last_only: compute the logits of the last position only, and skip the other tokens in steps that
                store no keys and values any more (see `Mixer.last_token`).

        Returns:
            [B, T, V], or [B, 1, V] with ``last_only``.

        Raises:
            CacheError: the cache has another plan or batch size, or no room.
            InputError: tokens, padding or documents of a wrong shape, type or range.
        """
        check_inputs(
            tokens, self.shape.vocab_size, cached=cache is not None, left_padding=left_padding, documents=documents
        )
        hidden = self.model(tokens, cache, left_padding=left_padding, documents=documents, last_only=last_only)
        logits: Tensor = self.lm_head(hidden)
        return logits

    def new_cache(
        self,
        batch_size: int,
        max_length: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        max_rollback: int = 0,
    ) -> KVCache:
        """An empty cache for this decoder.

        Args:
            batch_size: B.
            max_length: tokens of fixed storage; None for storage that grows.
            dtype: of the stored keys and values; default: that of the weights.
            max_rollback: see `KVCache`.
        """
        weight = self.lm_head.weight
        return KVCache(
            self.plan,
            self.shape,
            batch_size,
            dtype=dtype or weight.dtype,
            device=weight.device,
            max_length=max_length,
            max_rollback=max_rollback,
        )

    def num_parameters(self) -> tuple[int, int]:
        """How many parameters the skeleton and the mixer have (tied weights count once)."""
        mixing = sum(p.numel() for p in self.mixer.parameters())
        return sum(p.numel() for p in self.parameters()) - mixing, mixing


def materialize(
    decoder: Decoder,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    """Give a decoder built on the meta device its storage and its initial weights.

    Projections, embedding and head are normal with ``init_std``; norms are 1, biases 0. Each weight is drawn from a
    generator of its own, seeded with ``seed`` and its name, so two decoders of one seed that differ in the
    mixer share every other weight. The draws are made on the CPU in float32, so the weights do not depend
    on the device.

    Args:
        decoder: on the meta device.
        seed: of explicit generators; the global one is left alone.
        device: where the weights go.
        dtype: of the weights.

    Raises:
        MixerError: the mixer left a parameter without a value.
        BackendError: the attention backend cannot run on the device.
    """
    check_backend(decoder.config.attention_backend, device)
    decoder.to_empty(device="cpu")
    decoder.tie_weights()
    std = decoder.config.init_std
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.startswith("model.mixer."):
                continue
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=std, generator=_generator(seed, name))
    initialise_mixer(decoder, seed)
    return decoder.to(device=device, dtype=dtype)


@torch.no_grad()
def initialise_mixer(decoder: Decoder, seed: int) -> None:
    """Give a mixer's parameters their initial values.

    Args:
        decoder: its mixer has storage, on the CPU and in float32.
        seed: as in `materialize`.

    Raises:
        MixerError: the mixer left a parameter without a value.
    """
    mixer = decoder.mixer
    for parameter in mixer.parameters():
        parameter.fill_(math.nan)
    mixer.reset_parameters(_generator(seed, "model.mixer"), decoder.config.init_std)
    for name, parameter in mixer.named_parameters():
        if parameter.isnan().any():
            raise MixerError(f"mixer {mixer.name!r} gives its parameter {name!r} no initial value")


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _positions_in_documents(documents: Tensor) -> Tensor:
    """Positions [B, T] that count from 0 in every document of a packed row [B, T]."""
    index = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
    starts = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values
