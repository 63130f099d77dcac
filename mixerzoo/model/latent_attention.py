"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads come from one
low-rank latent per token, and the cache keeps that latent and one key with RoPE.

Parameter names are those of Hugging Face DeepSeek-V3; RoPE turns the two halves of the rotary part against
each other, as everywhere in this skeleton. Letters in shapes: B batch, T tokens of this call, S tokens that
attention sees, D hidden size, H heads, r rank of the latent, n and p the parts of a query or key head without
and with RoPE, u value head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer import AttentionInputs, Site, State
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.layer import RMSNorm, Rotary
from mixerzoo.model.stack import Borrowed, KeysAndValues, Stack


class LatentAttention(nn.Module):
    """Projections of one layer.

    Args:
        config: sizes and conventions; ``config.mla`` must be set.
        has_latent: whether any run of the layer makes latents of its own; else there is no projection for them.
    """

    def __init__(self, config: ModelConfig, has_latent: bool = True) -> None:
        super().__init__()
        sizes = config.mla
        assert sizes is not None
        self.num_heads = config.num_heads
        self.rank = sizes.kv_lora_rank
        self.nope_dim = sizes.qk_nope_head_dim
        self.rope_dim = sizes.qk_rope_head_dim
        self.value_dim = sizes.v_head_dim
        self.scaling = (self.nope_dim + self.rope_dim) ** -0.5
        query_size = config.num_heads * (self.nope_dim + self.rope_dim)
        self.compresses_queries = sizes.q_lora_rank is not None
        if sizes.q_lora_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, sizes.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(sizes.q_lora_rank, config.norm_eps)
            self.q_b_proj = nn.Linear(sizes.q_lora_rank, query_size, bias=False)
        if has_latent:
            self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.rank + self.rope_dim, bias=False)
            self.kv_a_layernorm = RMSNorm(self.rank, config.norm_eps)
        self.kv_b_proj = nn.Linear(self.rank, config.num_heads * (self.nope_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(config.num_heads * self.value_dim, config.hidden_size, bias=False)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Queries [B, H, T, n+p] of normed inputs [B, T, D]; the last p elements have RoPE."""
        flat = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if self.compresses_queries else self.q_proj(x)
        q = flat.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)
        return torch.cat([q[..., : self.nope_dim], rotary.rotate(q[..., self.nope_dim :])], dim=-1)

    def latent(self, x: Tensor, rotary: Rotary) -> Tensor:
        """What the cache stores [B, 1, T, r+p] of normed inputs [B, T, D]: the normed latent and the key with RoPE."""
        both = self.kv_a_proj_with_mqa(x)
        latent = self.kv_a_layernorm(both[..., : self.rank]).unsqueeze(1)
        return torch.cat([latent, rotary.rotate(both[..., self.rank :].unsqueeze(1))], dim=-1)

    def expand(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [B, H, S, n+p] and values [B, H, S, u] of every head, from latents [B, 1, S, r+p]."""
        flat = self.kv_b_proj(latents[:, 0, :, : self.rank])
        heads = flat.view(*flat.shape[:-1], self.num_heads, -1).transpose(1, 2)
        rope = latents[..., self.rank :].expand(-1, self.num_heads, -1, -1)
        return torch.cat([heads[..., : self.nope_dim], rope], dim=-1), heads[..., self.nope_dim :]

    def absorb(self, q: Tensor) -> Tensor:
        """Queries [B, H, T, r+p] that give against latents the scores that ``q`` [B, H, T, n+p] gives against keys."""
        up_keys = self._up()[:, : self.nope_dim]
        return torch.cat([q[..., : self.nope_dim] @ up_keys, q[..., self.nope_dim :]], dim=-1)

    def values(self, latents: Tensor) -> Tensor:
        """Values [B, H, T, u] of (weighted sums of) latents [B, H, T, r], one for each head."""
        up_values = self._up()[:, self.nope_dim :]
        return latents @ up_values.transpose(-1, -2)

    def output(self, heads: Tensor) -> Tensor:
        """Output [B, T, D] of mixed values [B, H, T, u]."""
        y: Tensor = self.o_proj(heads.transpose(1, 2).flatten(2))
        return y

    def _up(self) -> Tensor:
        """The weight [H, n+u, r] that expands latents."""
        projection = self.kv_b_proj
        if type(projection) is nn.Linear:
            weight = projection.weight
        else:
            # Adapters and quantised layers have a ``weight`` that is not what they multiply by.
            weight = projection(
                torch.eye(self.rank, dtype=self.o_proj.weight.dtype, device=self.o_proj.weight.device)
            ).T
        return weight.view(self.num_heads, -1, self.rank)


class LatentFunctions(NamedTuple):
    """What a decoder attends with, and where it keeps latents.

    Attributes:
        attend: attention over the sequence: q [B, H, T, ·], k and v [B, 1 or H, S, ·] → [B, H, T, ·].
        weigh: its weights [B, H, T, S], of the same q and k.
        append: stores a step's latents [B, 1, T, r+p] and weights [B, H, T, N] of N sources, and gives back all
            that is stored, or None where there is no past.
    """

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    weigh: Callable[[Tensor, Tensor], Tensor]
    append: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None


def attend_to_latents(
    stack: Stack,
    attn: LatentAttention,
    state: State,
    x: Tensor | AttentionInputs,
    borrowed: Borrowed,
    site: Site,
    rotary: Rotary,
    functions: LatentFunctions,
) -> tuple[State, Tensor, KeysAndValues]:
    """`Stack.attend` with latent attention.

    Without a past, keys and values are expanded. With one, queries go into the space of latents instead, and of
    values that a mixer sums over steps, each step's part is expanded after attention.

    Args:
        stack: the decoder.
        attn: the attention module of the step.
        state: of the mixer.
        x: normed inputs [B, T, D].
        borrowed: of earlier steps.
        site: where.
        rotary: RoPE of the tokens.
        functions: of the decoder.

    Raises:
        MixerError: the mixer gives queries, keys and values inputs of their own.
    """
    if isinstance(x, AttentionInputs):
        raise MixerError(f"mixer {stack.mixer.name!r} returned AttentionInputs, which latent attention cannot take")
    mixer, plan, step = stack.mixer, stack.plan, site.step
    attend, weigh, append = functions
    q = attn.query(x, rotary)
    latents = attn.latent(x, rotary) if plan.owns_k(step) else None
    k = v = None
    if latents is not None and (append is None or mixer.defines("mix_kv")):
        k, v = attn.expand(latents)
        state, k, v = mixer.mix_kv(state, site, q, k, v)
    if append is None:
        if latents is None:
            assert borrowed.k is not None
            latents = borrowed.k.k
            k, v = attn.expand(latents)
        assert k is not None
        assert v is not None
        return state, attn.output(attend(q, k, v)), KeysAndValues(latents, latents[..., :0])
    sources = plan.sources_of_latents(step)
    if latents is None:
        assert borrowed.k is not None
        latents, weights = borrowed.k
    else:
        weights = mixer.value_weights(state, site) if sources else q[..., :0]
        latents, weights = append(latents, weights)
    latents = latents.to(q.dtype)
    q = attn.absorb(q)
    if not sources:
        summed = attend(q, latents, latents[..., : attn.rank])
        return state, attn.output(attn.values(summed)), KeysAndValues(latents, weights)
    heads = torch.zeros_like(q[..., : attn.value_dim])
    over_sequence = weigh(q, latents)
    for number, (source, kept) in enumerate(zip(sources, (*borrowed.latents, latents), strict=True)):
        owner = stack.attention_of(source)
        assert isinstance(owner, LatentAttention)
        weighted = (over_sequence * weights[..., number].unsqueeze(2)).to(q.dtype)
        heads = heads + owner.values(weighted @ kept[..., : attn.rank].to(q.dtype))
    return state, attn.output(heads), KeysAndValues(latents, weights)
