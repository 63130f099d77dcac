"""Attention of one layer: projections, head norms, RoPE, what the mixer does there, and the output projection.

Parameter names are those of Hugging Face Llama and Qwen3. Letters in shapes: B batch, T tokens of this call,
D hidden size, H query heads, G key/value heads, d head_dim.
"""

from __future__ import annotations

from torch import Tensor, nn

from mixerzoo import ops
from mixerzoo.mixer import AttentionInputs, State
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.norm import RMSNorm
from mixerzoo.model.past import HeadNorms, KeysAndValues, Past, Turn
from mixerzoo.model.plain import is_plain
from mixerzoo.model.rope import Rotary


class Attention(nn.Module):
    """Grouped-query attention. How it is computed is the past's; what it reads and stores is the mixer's too.

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
        bias = config.attention_bias != "none"
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * head_dim, bias=bias)
        if has_k:
            self.k_proj = nn.Linear(config.hidden_size, config.resolved_kv_heads * head_dim, bias=bias)
            self.k_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        if has_v:
            self.v_proj = nn.Linear(config.hidden_size, config.resolved_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * head_dim, config.hidden_size, bias=config.attention_bias == "qkvo")
        self.q_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor | AttentionInputs, turn: Turn[Past]) -> tuple[State, Tensor, KeysAndValues]:
        """Store what the step has of its own, and attend to all that it reads.

        Args:
            x: inputs [B, T, D], normed but for what `Turn.norm` says.
            turn: what else the step knows.

        Returns:
            The mixer's state, the output [B, T, D], and what the slots hold that the step wrote.
        """
        q, k, v = self.project(x, turn.norm, turn.owns_k, turn.owns_v)
        return self.attended(x, q, k, v, turn, self)

    def attended(
        self,
        x: Tensor | AttentionInputs,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        turn: Turn[Past],
        norms: HeadNorms,
    ) -> tuple[State, Tensor, KeysAndValues]:
        """What `forward` gives, of projected heads; ``norms`` are what they lack of head norm and RoPE."""
        state, q, k, v, depth = turn.mix(norms, x, q, k, v)
        own = turn.store(k, v)
        keys, values = turn.attended(own, q.dtype)
        heads = turn.run.past.attend(turn.site.step, q, keys, values, self.scaling, depth)
        return state, self.output(heads), own

    def project(
        self, x: Tensor | AttentionInputs, norm: nn.Module | None, owns_k: bool, owns_v: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Projected queries [B, H, T, d], keys and values [B, G, T, d] of inputs [B, T, D].

        Args:
            x: one input for all three, or three.
            norm: of inputs that are not normed; None: they are.
            owns_k: whether the step has keys of its own; else they are None.
            owns_v: likewise for values.
        """
        x_q, x_k, x_v = x if isinstance(x, AttentionInputs) else (x, x, x)
        return (
            self.heads(projection(self.q_proj, x_q, norm)),
            self.heads(projection(self.k_proj, x_k, norm)) if owns_k else None,
            self.heads(projection(self.v_proj, x_v, norm)) if owns_v else None,
        )

    def heads(self, projected: Tensor) -> Tensor:
        """Heads [B, H or G, T, d] of projected inputs [B, T, H·d or G·d]."""
        return projected.view(*projected.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def query(self, q: Tensor, rotary: Rotary) -> Tensor:
        """Queries [B, H, T, d] from projected ones, after head norm and RoPE."""
        return rotary.rotate(self.q_norm(q))

    def key(self, k: Tensor, rotary: Rotary) -> Tensor:
        """Keys [B, G, T, d] from projected ones, after head norm and RoPE in the order of ``k_norm``."""
        if self.k_norm_last:
            normed: Tensor = self.k_norm(rotary.rotate(k))
            return normed
        return rotary.rotate(self.k_norm(k))

    def output(self, heads: Tensor) -> Tensor:
        """Output [B, T, D] of mixed values [B, H, T, d]."""
        y: Tensor = self.o_proj(heads.transpose(1, 2).flatten(2))
        return y


def projection(linear: nn.Module, x: Tensor, norm: nn.Module | None) -> Tensor:
    """linear(norm(x)), [B, T, D] → [B, T, rows]; of the modules as they are made here the backward keeps x alone.

    Three inputs of one attention would else keep nine vectors, where one keeps three.
    """
    if norm is not None and is_plain(norm, RMSNorm) and is_plain(linear, nn.Linear):
        assert isinstance(norm, RMSNorm)
        assert isinstance(linear, nn.Linear)
        biases = None if linear.bias is None else [linear.bias]
        return ops.normed_linear(x, [linear.weight], norm.eps, norm.weight, biases)[0]
    y: Tensor = linear(x if norm is None else norm(x))
    return y
