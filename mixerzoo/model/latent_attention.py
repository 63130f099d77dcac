"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads come from one
low-rank latent per token, and the cache keeps that latent and one key with RoPE.

Parameter names are those of Hugging Face DeepSeek-V3; RoPE turns the two halves of the rotary part against
each other, as everywhere in this decoder. Letters in shapes: B batch, T tokens of this call, S tokens that
attention sees, D hidden size, H heads, r rank of the latent, n and p the parts of a query or key head without
and with RoPE, u value head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer import AttentionInputs, State
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.norm import RMSNorm
from mixerzoo.model.past import KeysAndValues, Past, Turn
from mixerzoo.model.rope import Rotary


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

    def forward(self, x: Tensor | AttentionInputs, turn: Turn[Past]) -> tuple[State, Tensor, KeysAndValues]:
        """As `Attention.forward`.

        Without a past, keys and values are expanded. With one, queries go into the space of latents instead, and of
        values that a mixer sums over steps, each step's part is expanded after attention.

        Raises:
            MixerError: the mixer gives queries, keys and values inputs of their own.
        """
        mixer, plan, rotary, past = turn.run
        if isinstance(x, AttentionInputs):
            raise MixerError(f"mixer {mixer.name!r} returned AttentionInputs, which latent attention cannot take")
        state, step, q = turn.state, turn.site.step, self.query(x, rotary)
        latents = self.latent(x, rotary) if turn.owns_k else None
        k = v = None
        if latents is not None and (not past.stores or "mix_kv" in plan.hooks):
            k, v = self.expand(latents)
            if "mix_kv" in plan.hooks:
                state, k, v = mixer.mix_kv(state, turn.call(x, q, k, v))
        if not past.stores:
            if k is None or v is None:
                k, v = self.expand(_given(turn.reads.k[0]))
            heads = past.attend(step, q, k, v, self.scaling, None)
            return state, self.output(heads), KeysAndValues(latents, None)
        sources = plan.value_sources(step)
        if latents is None:
            own = KeysAndValues(None, None)
            held = _given(turn.reads.k[0]).to(q.dtype)
        else:
            weights = mixer.value_weights(state, turn.site) if sources else q[..., :0]
            own = past.store(plan.k_writes[step], latents, weights)
            held = _given(own.k).to(q.dtype)
        q = self.absorb(q)
        if not sources:
            summed = past.attend(step, q, held, held[..., : self.rank], self.scaling, None)
            return state, self.output(self.values(summed)), own
        shares, over_sequence = _given(own.v), past.weigh(step, q, held, self.scaling)
        heads = q.new_zeros(*q.shape[:-1], self.value_dim)
        for number, (owner, kept) in enumerate((*turn.reads.latents, (self, held))):
            assert isinstance(owner, LatentAttention)
            weighted = (over_sequence * shares[..., number].unsqueeze(2)).to(q.dtype)
            heads = heads + owner.values(weighted @ kept[..., : self.rank].to(q.dtype))
        return state, self.output(heads), own

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


def _given(held: Tensor | None) -> Tensor:
    """What a plan without gaps has put there."""
    assert held is not None
    return held
