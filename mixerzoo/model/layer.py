"""The parts of one layer: norm, rotary embedding, attention projections, MLP.

Parameter names are those of Hugging Face Llama and Qwen3. Letters in shapes: B batch, T tokens of this call,
D hidden size, H query heads, G key/value heads, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.mixer import AttentionInputs
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.rope import RopeScaling, frequencies

Result = TypeVar("Result")


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
    def at(
        cls, positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
    ) -> Rotary:
        """Angles of positions [B or 1, T] for heads whose two halves rotate against each other.

        Args:
            positions: integer positions.
            head_dim: d, even.
            theta: base; pair i turns by ``position · theta^(−2i/d)``.
            dtype: of the arithmetic and of the result.
            scaling: of the frequencies, for contexts longer than those of the training.
        """
        frequency = frequencies(head_dim, theta, scaling, dtype=dtype, device=positions.device)
        angles = positions.to(dtype)[:, None, :, None] * frequency
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        if scaling is None or scaling.amplitude == 1.0:
            return cls(cos, sin)
        return cls(cos * scaling.amplitude, sin * scaling.amplitude)

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
        bias = config.attention_bias != "none"
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * head_dim, bias=bias)
        if has_k:
            self.k_proj = nn.Linear(config.hidden_size, config.resolved_kv_heads * head_dim, bias=bias)
            self.k_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        if has_v:
            self.v_proj = nn.Linear(config.hidden_size, config.resolved_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * head_dim, config.hidden_size, bias=config.attention_bias == "qkvo")
        self.q_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def project(
        self, x: Tensor | AttentionInputs, owns_k: bool, owns_v: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Projected queries [B, H, T, d], keys and values [B, G, T, d] of normed inputs [B, T, D].

        Args:
            x: one input for all three, or three.
            owns_k: whether the step has keys of its own; else they are None.
            owns_v: likewise for values.
        """
        x_q, x_k, x_v = x if isinstance(x, AttentionInputs) else (x, x, x)
        return (
            self.heads(self.q_proj(x_q)),
            self.heads(self.k_proj(x_k)) if owns_k else None,
            self.heads(self.v_proj(x_v)) if owns_v else None,
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


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)).

    Args:
        config: sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.mlp_bias
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """The weights of one physical layer; the order of operations is the decoder's.

    Args:
        config: sizes and conventions.
        attention: its attention sublayer.
    """

    def __init__(self, config: ModelConfig, attention: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, run: Callable[..., Result], *arguments: Any) -> Result:
        """Run a step with this layer's weights: ``run(self, *arguments)``.

        So that whatever hangs on a module's forward (sharding gathers weights there) sees one call a step.
        """
        return run(self, *arguments)
