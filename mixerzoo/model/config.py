"""The ``model`` section of a recipe: sizes and conventions of the decoder, everything but the mixer."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixerzoo.errors import MixerError
from mixerzoo.mixer import DecoderShape, Plan
from mixerzoo.model.backends import BackendName
from mixerzoo.model.rope import RopeScaling, YarnScaling

#: Layers, and steps when loops are unrolled.
MAX_STEPS = 256
Width = Annotated[int, Field(ge=1, le=2**20)]
Heads = Annotated[int, Field(ge=1, le=2**16)]
Vocabulary = Annotated[int, Field(ge=1, le=2**24)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]


class LoopConfig(BaseModel):
    """Run a stretch of layers several times with tied weights: prelude, body × count, coda."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prelude: int = Field(0, ge=0, le=MAX_STEPS, description="Layers before the body, run once.")
    coda: int = Field(0, ge=0, le=MAX_STEPS, description="Layers after the body, run once.")
    count: Steps = Field(1, description="How many times the body runs; 1 is no loop.")


class LatentConfig(BaseModel):
    """Sizes of multi-head latent attention, under their DeepSeek names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kv_lora_rank: Width = Field(description="Size of the latent from which all keys and values come.")
    qk_nope_head_dim: Width = Field(description="Part of a query or key head without RoPE.")
    qk_rope_head_dim: Width = Field(description="Part with RoPE; its key is shared by all heads. Even.")
    v_head_dim: Width = Field(description="Width of a value head.")
    q_lora_rank: Width | None = Field(None, description="Rank of the queries; default: not compressed.")


class ModelConfig(BaseModel):
    """Sizes and conventions of the decoder; everything but the mixer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    hidden_size: Width = Field(description="Width D of the hidden states.")
    intermediate_size: Annotated[int, Field(ge=1, le=2**24)] = Field(description="Width of the SwiGLU MLP.")
    num_layers: Steps = Field(description="Physical layers.")
    num_heads: Heads = Field(description="Query heads H.")
    num_kv_heads: Heads | None = Field(None, description="Key/value heads G; default: as many as query heads.")
    head_dim: Width | None = Field(None, description="Width of a head; default hidden_size / num_heads.")
    vocab_size: Vocabulary | None = Field(None, description="Rows of the embedding; default: the tokenizer's.")
    qk_norm: bool = Field(True, description="RMSNorm on each query and key head.")
    k_norm: Literal["pre_rope", "post_rope"] = Field(
        "pre_rope",
        description="Whether the key norm comes before RoPE (Qwen3) or after it (Depth-Attention release).",
    )
    rope_theta: float = Field(10000.0, ge=1e-6, le=1e18, description="Base of the rotary embedding.")
    rope_scaling: RopeScaling | None = Field(None, description="Scaled rotary frequencies, for longer contexts.")
    norm_eps: float = Field(1e-5, ge=1e-20, le=1.0, description="Epsilon of every RMSNorm.")
    tie_embeddings: bool = Field(False, description="The head shares the embedding's weight.")
    scale_embeddings: bool = Field(False, description="Multiply embeddings by √D.")
    attention_bias: Literal["none", "qkv", "qkvo"] = Field(
        "none", description="Which of the attention's projections have a bias."
    )
    mlp_bias: bool = Field(False, description="The MLP's projections have a bias.")
    sliding_window: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="How many most recent tokens a token sees, itself included; default: all."
    )
    sliding_layers: tuple[Annotated[int, Field(ge=0, lt=MAX_STEPS)], ...] | None = Field(
        None, strict=False, description="Numbers of the layers with that window; default: all."
    )
    init_std: float = Field(0.02, ge=1e-10, le=1e3, description="Standard deviation of the initial weights.")
    loop: LoopConfig = Field(LoopConfig(), description="Looped layers.")
    attention: Literal["gqa", "mla"] = Field(
        "gqa", description="Grouped-query attention, or multi-head latent attention with the sizes of `mla`."
    )
    mla: LatentConfig | None = Field(None, description="Sizes of multi-head latent attention.")
    attention_backend: BackendName = Field("sdpa", description="What computes attention.")

    @model_validator(mode="after")
    def _latent_attention(self) -> Self:
        if self.attention == "gqa":
            if self.mla is not None:
                raise ValueError("mla is set, but attention is gqa; set attention to mla, or remove mla")
            return self
        if self.mla is None:
            raise ValueError(f"attention mla needs its sizes: mla with {', '.join(LatentConfig.model_fields)}")
        if self.mla.qk_rope_head_dim % 2:
            raise ValueError(f"mla.qk_rope_head_dim {self.mla.qk_rope_head_dim} is odd; RoPE rotates pairs")
        fields = type(self).model_fields
        for name in ("num_kv_heads", "head_dim", "qk_norm", "k_norm"):
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} has no meaning with attention mla; remove it")
        for name in ("rope_scaling", "attention_bias", "sliding_window"):
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} is not computed with attention mla; remove it")
        return self

    @model_validator(mode="after")
    def _sliding_layers_exist(self) -> Self:
        if self.sliding_layers is None:
            return self
        if self.sliding_window is None:
            raise ValueError("sliding_layers has no meaning without sliding_window; set it, or remove sliding_layers")
        if list(self.sliding_layers) != sorted(set(self.sliding_layers)):
            raise ValueError(f"sliding_layers must ascend, got {list(self.sliding_layers)}")
        if self.sliding_layers and self.sliding_layers[-1] >= self.num_layers:
            raise ValueError(
                f"sliding_layers has {self.sliding_layers[-1]}, but num_layers is {self.num_layers}: "
                f"they count from 0 to {self.num_layers - 1}"
            )
        return self

    @model_validator(mode="after")
    def _yarn_has_a_base(self) -> Self:
        if isinstance(self.rope_scaling, YarnScaling) and self.rope_theta <= 1:
            raise ValueError(f"rope_theta {self.rope_theta} must be over 1 with rope_scaling yarn")
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.attention == "mla":
            return self
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}; set head_dim"
            )
        if self.num_heads % self.resolved_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.resolved_head_dim % 2:
            raise ValueError(f"head_dim {self.resolved_head_dim} is odd; RoPE rotates pairs")
        return self

    @model_validator(mode="after")
    def _loop_has_a_body(self) -> Self:
        if self.loop.prelude + self.loop.coda >= self.num_layers:
            raise ValueError(
                f"loop.prelude {self.loop.prelude} + loop.coda {self.loop.coda} leaves no body "
                f"in {self.num_layers} layers"
            )
        body = self.num_layers - self.loop.prelude - self.loop.coda
        steps = self.num_layers + body * (self.loop.count - 1)
        if steps > MAX_STEPS:
            raise ValueError(
                f"loop.count {self.loop.count} unrolls {self.num_layers} layers to {steps:,} steps; "
                f"at most {MAX_STEPS:,} can be run"
            )
        return self

    @property
    def resolved_kv_heads(self) -> int:
        """G, with its default applied."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def resolved_head_dim(self) -> int:
        """d, with its default applied: the width of a query and of a key head."""
        if self.mla is not None:
            return self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def has_key_norms(self) -> bool:
        """Whether each key head has a norm, so that ``k_norm`` means something."""
        return self.qk_norm and self.attention == "gqa"

    @property
    def rotary_dim(self) -> int:
        """How many elements of a query and of a key head have RoPE."""
        return self.resolved_head_dim if self.mla is None else self.mla.qk_rope_head_dim

    @property
    def order(self) -> tuple[int, ...]:
        """Physical layer of each unrolled step."""
        layers = tuple(range(self.num_layers))
        start, stop = self.loop.prelude, self.num_layers - self.loop.coda
        return layers[:start] + layers[start:stop] * self.loop.count + layers[stop:]

    def windowed(self, plan: Plan) -> Plan:
        """A mixer's plan, in which no layer of ``sliding_window`` sees farther than that.

        Args:
            plan: what `Mixer.plan` says.

        Raises:
            MixerError: a step reads keys or values of one whose layer has another window.
        """
        if self.sliding_window is None:
            return plan
        sliding = range(self.num_layers) if self.sliding_layers is None else self.sliding_layers
        limits = [self.sliding_window if layer in sliding else None for layer in plan.order]
        for step, limit in enumerate(limits):
            for writer, slot in enumerate(plan.k_writes):
                if limits[writer] == limit or (slot is None and plan.v_writes[writer] is None):
                    continue
                if slot in plan.k_reads[step] or plan.v_writes[writer] in plan.v_reads[step]:
                    raise MixerError(
                        f"the mixer lets step {step} read keys or values of step {writer}, and model.sliding_layers "
                        "gives a window to one of the two only; let both have it, or none"
                    )
        by_slot = list(limits)
        for step, limit in enumerate(limits):
            for slot in (plan.k_writes[step], plan.v_writes[step]):
                if slot is not None:
                    by_slot[slot] = limit
        windows = [min(filter(None, pair), default=None) for pair in zip(plan.windows, by_slot, strict=True)]
        return replace(plan, windows=tuple(windows))

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
            value_dim=self.resolved_head_dim if self.mla is None else self.mla.v_head_dim,
            latent_dim=0 if self.mla is None else self.mla.kv_lora_rank + self.mla.qk_rope_head_dim,
        )
