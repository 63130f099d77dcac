"""The one decoder skeleton: norm, rotary, attention, MLP, layers, and the loop that runs a mixer over them.

Parameter names are those of Hugging Face Llama and Qwen3; the mixer's live under ``model.mixer``.
Letters in shapes: B batch, T tokens of this call, D hidden size, H query heads, G key/value heads,
d head_dim, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixerzoo.attention import (
    AttentionMask,
    BackendName,
    Visibility,
    backend_function,
    check_backend,
    make_mask,
)
from mixerzoo.cache import KVCache
from mixerzoo.errors import CacheError, MixerError
from mixerzoo.mixer import AttentionInputs, Context, DecoderShape, Mixer, MixerConfig, Plan, Site, State

Positive = Annotated[int, Field(ge=1)]


class LoopConfig(BaseModel):
    """Run a stretch of layers several times with tied weights: prelude, body × count, coda."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prelude: int = Field(0, ge=0, description="Layers before the body, run once.")
    coda: int = Field(0, ge=0, description="Layers after the body, run once.")
    count: Positive = Field(1, description="How many times the body runs; 1 is no loop.")


class ModelConfig(BaseModel):
    """Sizes and conventions of the decoder; everything but the mixer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hidden_size: Positive = Field(description="Width D of the hidden states.")
    intermediate_size: Positive = Field(description="Width of the SwiGLU MLP.")
    num_layers: Positive = Field(description="Physical layers.")
    num_heads: Positive = Field(description="Query heads H.")
    num_kv_heads: Positive | None = Field(None, description="Key/value heads G; default: as many as query heads.")
    head_dim: Positive | None = Field(None, description="Width of a head; default hidden_size / num_heads.")
    vocab_size: Positive | None = Field(None, description="Rows of the embedding; default: the tokenizer's.")
    qk_norm: bool = Field(True, description="RMSNorm on each query and key head.")
    k_norm: Literal["pre_rope", "post_rope"] = Field(
        "pre_rope",
        description="Whether the key norm comes before RoPE (Qwen3) or after it (Depth-Attention release).",
    )
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary embedding.")
    norm_eps: float = Field(1e-5, gt=0, description="Epsilon of every RMSNorm.")
    tie_embeddings: bool = Field(False, description="The head shares the embedding's weight.")
    scale_embeddings: bool = Field(False, description="Multiply embeddings by √D.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    loop: LoopConfig = Field(LoopConfig(), description="Looped layers.")
    attention: BackendName = Field("sdpa", description="Attention backend.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}; set head_dim"
            )
        if self.num_heads % self.resolved_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.resolved_head_dim % 2:
            raise ValueError(f"head_dim {self.resolved_head_dim} is odd; RoPE rotates pairs")
        if self.loop.prelude + self.loop.coda >= self.num_layers:
            raise ValueError(
                f"loop.prelude {self.loop.prelude} + loop.coda {self.loop.coda} leaves no body "
                f"in {self.num_layers} layers"
            )
        return self

    @property
    def resolved_kv_heads(self) -> int:
        """G, with its default applied."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def resolved_head_dim(self) -> int:
        """d, with its default applied."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def order(self) -> tuple[int, ...]:
        """Physical layer of each unrolled step."""
        layers = tuple(range(self.num_layers))
        start, stop = self.loop.prelude, self.num_layers - self.loop.coda
        return layers[:start] + layers[start:stop] * self.loop.count + layers[stop:]

    def shape(self) -> DecoderShape:
        """What a mixer may know of this decoder.

        Raises:
            MixerError: the vocabulary size is still open.
        """
        if self.vocab_size is None:
            raise MixerError("model.vocab_size is not set, and no tokenizer was given to take it from")
        return DecoderShape(
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.resolved_kv_heads,
            head_dim=self.resolved_head_dim,
            order=self.order,
            norm_eps=self.norm_eps,
            vocab_size=self.vocab_size,
        )


def compute_dtype(x: Tensor) -> torch.dtype:
    """Where norms, RoPE and softmax happen: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class RMSNorm(nn.Module):
    """x · weight / √(mean(x²) + eps) over the last dimension.

    Args:
        size: of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]."""
        exact = x.to(compute_dtype(x))
        scaled = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Rotary(NamedTuple):
    """Cosine and sine [B or 1, 1, T, d] of the rotary angles."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
        """Angles of positions [B or 1, T] for heads whose two halves rotate against each other.

        Args:
            positions: integer positions.
            head_dim: d, even.
            theta: base; pair i turns by ``position · theta^(−2i/d)``.
            dtype: of the arithmetic and of the result.
        """
        pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=dtype)
        frequency = 1.0 / (theta ** (pairs / head_dim))
        angles = positions.to(dtype)[:, None, :, None] * frequency
        angles = torch.cat([angles, angles], dim=-1)
        return cls(angles.cos(), angles.sin())

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate x [B, heads, T, d]."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return (x * self.cos + turned * self.sin).to(x.dtype)


class Attention(nn.Module):
    """Projections, head norms and RoPE of one layer, and its output projection.

    The attention itself is a backend's; what lies between the two halves is the mixer's and the cache's.

    Args:
        config: sizes and conventions.
        has_k: whether any run of the layer makes keys of its own; else there is no projection for them.
        has_v: likewise for values.
    """

    def __init__(self, config: ModelConfig, has_k: bool = True, has_v: bool = True) -> None:
        super().__init__()
        head_dim = config.resolved_head_dim
        self.head_dim = head_dim
        self.scaling = head_dim**-0.5
        self.k_norm_last = config.k_norm == "post_rope"
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * head_dim, bias=False)
        if has_k:
            self.k_proj = nn.Linear(config.hidden_size, config.resolved_kv_heads * head_dim, bias=False)
            self.k_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        if has_v:
            self.v_proj = nn.Linear(config.hidden_size, config.resolved_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Queries [B, H, T, d] of normed inputs [B, T, D], after head norm and RoPE."""
        q: Tensor = self.q_norm(self._heads(self.q_proj(x)))
        return rotary.rotate(q)

    def key(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Keys [B, G, T, d], after head norm and RoPE in the order of ``k_norm``."""
        k = self._heads(self.k_proj(x))
        if self.k_norm_last:
            normed: Tensor = self.k_norm(rotary.rotate(k))
            return normed
        return rotary.rotate(self.k_norm(k))

    def value(self, x: Tensor) -> Tensor:
        """Values [B, G, T, d]."""
        return self._heads(self.v_proj(x))

    def output(self, heads: Tensor) -> Tensor:
        """Output [B, T, D] of mixed values [B, H, T, d]."""
        y: Tensor = self.o_proj(heads.transpose(1, 2).flatten(2))
        return y


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)).

    Args:
        config: sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class _KV(NamedTuple):
    """Keys and values that one step attends to."""

    k: Tensor
    v: Tensor


#: The mixer's state after a step, and what the step attended to.
_StepResult: TypeAlias = tuple[State, _KV]


class Layer(nn.Module):
    """The weights of one physical layer; the order of operations is `Backbone`'s.

    Args:
        config: sizes and conventions.
        has_k: as in `Attention`.
        has_v: as in `Attention`.
    """

    def __init__(self, config: ModelConfig, has_k: bool = True, has_v: bool = True) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, has_k, has_v)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, run: Callable[..., _StepResult], *arguments: Any) -> _StepResult:
        """Run a step with this layer's weights: ``run(self, *arguments)``.

        So that whatever hangs on a module's forward (sharding gathers weights there) sees one call a step.
        """
        return run(self, *arguments)


class _Forward(NamedTuple):
    """What all layers of one forward share."""

    rotary: Rotary
    masks: dict[int | None, AttentionMask]
    cache: KVCache | None


class Backbone(nn.Module):
    """Embedding, layers, mixer and final norm: tokens in, normed hidden states out.

    Args:
        config: sizes and conventions.
        mixer: the mixer that joins the layers.
    """

    def __init__(self, config: ModelConfig, mixer: Mixer) -> None:
        super().__init__()
        self.config = config
        self.plan: Plan = mixer.plan()
        shape = config.shape()
        if max(self.plan.order, default=-1) >= shape.num_layers or min(self.plan.order, default=0) < 0:
            raise MixerError(f"mixer {mixer.name!r} plans layers {self.plan.order} of {shape.num_layers}")
        steps = range(len(self.plan.order))
        borrowing = [s for s in steps if not (self.plan.owns_k(s) and self.plan.owns_v(s))]
        if mixer.needs_own_kv and borrowing:
            raise MixerError(
                f"mixer {mixer.name!r} needs each layer's own keys and values, but steps {borrowing} borrow theirs"
            )
        # nn.Embedding's own initialisation loads the compiler on the meta device: a second for nothing.
        self.embed_tokens = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            torch.empty(shape.vocab_size, config.hidden_size), freeze=False
        )
        order = self.plan.order
        owning_k = {order[step] for step in steps if self.plan.owns_k(step)}
        owning_v = {order[step] for step in steps if self.plan.owns_v(step)}
        self.layers = nn.ModuleList(
            Layer(config, has_k=layer in owning_k, has_v=layer in owning_v) for layer in range(config.num_layers)
        )
        self.mixer = mixer
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.activation_checkpointing = False
        self._lent = {s for s in steps if s in self.plan.k_slot[s + 1 :] or s in self.plan.v_slot[s + 1 :]}

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        left_padding: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Normed hidden states [B, T, D]; arguments as in `Decoder.forward`."""
        x: Tensor = self.embed_tokens(tokens)
        if self.config.scale_embeddings:
            x = x * math.sqrt(self.config.hidden_size)
        shared = self._prepare(x, cache, left_padding, documents)
        state = self.mixer.start(x, Context(tokens))
        held: dict[int, _KV] = {}
        recompute = self.activation_checkpointing and torch.is_grad_enabled() and cache is None
        for step in range(len(self.plan.order)):
            borrowed = (held.get(self.plan.k_slot[step]), held.get(self.plan.v_slot[step]))
            layer = self.layers[self.plan.order[step]]
            if recompute:
                # Non-re-entrant: the re-entrant variant loses the gradients of tensors inside the state.
                state, kv = checkpoint(layer, self._step, state, borrowed, step, shared, use_reentrant=False)
            else:
                state, kv = layer(self._step, state, borrowed, step, shared)
            if step in self._lent:
                held[step] = kv
        if cache is not None:
            cache.advance(tokens.size(1))
        hidden: Tensor = self.norm(self.mixer.finish(state))
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
        rotary = Rotary.at(positions, self.config.resolved_head_dim, self.config.rope_theta, compute_dtype(x))
        masks: dict[int | None, AttentionMask] = {}
        for step in range(len(self.plan.order)):
            window = self.plan.window(step)
            if window in masks:
                continue
            keys = queries if cache is None else cache.key_positions(window, num_new)
            compiled = torch.compiler.is_compiling()
            fresh = cache is None or (not compiled and cache.length == 0 and window is None)
            rule = Visibility(queries, keys, window, left_padding, documents, square=fresh)
            sees_all = num_new == 1 and window is None and left_padding is None and documents is None
            if cache is not None and cache.max_length is not None and compiled:
                sees_all = False
            masks[window] = make_mask(rule, self.config.attention, sees_all)
        return _Forward(rotary, masks, cache)

    def _step(
        self, layer: Layer, state: State, borrowed: tuple[_KV | None, _KV | None], step: int, shared: _Forward
    ) -> _StepResult:
        attn = layer.self_attn
        site = Site(step, self.plan.order[step], "attention")
        x = self.mixer.read(state, site)
        if isinstance(x, AttentionInputs):
            x_q, x_k, x_v = (layer.input_layernorm(part) for part in x)
        else:
            x_q = x_k = x_v = layer.input_layernorm(x)
        q = attn.query(x_q, shared.rotary)
        k = attn.key(x_k, shared.rotary) if self.plan.owns_k(step) else None
        v = attn.value(x_v) if self.plan.owns_v(step) else None
        if k is not None and v is not None:
            state, k, v = self.mixer.mix_kv(state, site, q, k, v)
        if shared.cache is not None and not (k is None and v is None):
            k, v = shared.cache.append(step, k, v)
        k_owner, v_owner = borrowed
        if k is None:
            assert k_owner is not None
            k = k_owner.k
        if v is None:
            assert v_owner is not None
            v = v_owner.v
        attend = backend_function(self.config.attention)
        heads = attend(q, k.to(q.dtype), v.to(q.dtype), shared.masks[self.plan.window(step)], attn.scaling)
        state = self.mixer.write(state, site, attn.output(heads))

        site = site._replace(branch="mlp")
        x = self.mixer.read(state, site)
        if isinstance(x, AttentionInputs):
            raise MixerError(f"mixer {self.mixer.name!r} returned AttentionInputs at an MLP site")
        state = self.mixer.write(state, site, layer.mlp(layer.post_attention_layernorm(x)))
        return state, _KV(k, v)


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
            last_only: compute the logits of the last position only.

        Returns:
            [B, T, V], or [B, 1, V] with ``last_only``.

        Raises:
            CacheError: the cache has another plan or batch size, or no room.
        """
        hidden = self.model(tokens, cache, left_padding=left_padding, documents=documents)
        if last_only:
            hidden = hidden[:, -1:]
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

    Projections, embedding and head are normal with ``init_std``; norms are 1. Each weight is drawn from a
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
    check_backend(decoder.config.attention, device)
    decoder.to_empty(device="cpu")
    decoder.tie_weights()
    std = decoder.config.init_std
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.startswith("model.mixer."):
                parameter.fill_(math.nan)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=std, generator=_generator(seed, name))
        decoder.mixer.reset_parameters(_generator(seed, "model.mixer"), std)
        for name, parameter in decoder.mixer.named_parameters():
            if parameter.isnan().any():
                raise MixerError(f"mixer {decoder.mixer.name!r} gives its parameter {name!r} no initial value")
    return decoder.to(device=device, dtype=dtype)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _positions_in_documents(documents: Tensor) -> Tensor:
    """Positions [B, T] that count from 0 in every document of a packed row [B, T]."""
    index = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
    starts = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values
