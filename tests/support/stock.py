"""Tiny stock transformers models: in float32 as they are, and in float64 throughout."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import zoo

KINDS = ("llama", "mistral", "qwen2", "qwen3")
#: Model type and what differs from a plain one.
STOCK: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in KINDS),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}}),
    ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e5}}),
    ("qwen3", {"attention_bias": True}),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
]
TOKENS = zoo.some_tokens(2, 12)


def stock_model(kind: str, **changes: Any) -> Any:
    """A tiny stock model with random weights.

    Args:
        kind: one of `KINDS`.
        changes: what differs in its configuration.
    """
    import transformers

    prefix = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    sizes = {
        "hidden_size": 32 if kind == "qwen2" else 24,  # there, heads are as wide as that makes them
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": zoo.VOCAB_SIZE,
        "max_position_embeddings": 64,
        "sliding_window": None,
    }
    config = getattr(transformers, f"{prefix}Config")(**{**sizes, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
            if name.endswith("norm.weight"):
                parameter.add_(1)
    return model


# They keep norms and RoPE in float32 whatever the dtype, so for an exact comparison those two are replaced;
# everything else is theirs, and so are the frequencies of scaled RoPE, computed with another default precision.


class ExactNorm(nn.Module):
    """RMSNorm in the dtype of its input."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (x.size(-1),), self.weight, self.eps)


class ExactRotary(nn.Module):
    """Cosines and sines in the dtype of the hidden states."""

    def __init__(self, frequencies: Tensor, amplitude: float) -> None:
        super().__init__()
        self.frequencies, self.amplitude = frequencies, amplitude

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids.to(x.dtype)[..., None] * self.frequencies.to(x.dtype)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude


def stock_frequencies(config: Any) -> tuple[Tensor, float]:
    """transformers' own frequencies in float64, and its factor of cosine and sine."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
        return config.rope_parameters["rope_theta"] ** -(pairs / head_dim), 1.0
    # The functions name the precision themselves.
    with mock.patch.object(torch, "float", torch.float64), mock.patch.object(torch, "float32", torch.float64):
        frequencies, amplitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    assert frequencies.dtype == torch.float64
    return frequencies, amplitude


def exact(model: Any) -> Any:
    """The same model in float64 throughout."""
    model = model.double()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child.weight, child.variance_epsilon))
    model.model.rotary_emb = ExactRotary(*stock_frequencies(model.config))
    return model
