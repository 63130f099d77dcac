"""KromHC (arXiv 2601.21579): the stream matrix is a Kronecker product of 2 × 2 doubly stochastic ones."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import DecoderShape, MixerCard, MixerConfig, MixerError
from mixerzoo_plugins.hyper_connections.constrained import ConstrainedConnection
from mixerzoo_plugins.hyper_connections.streams import StreamMixer


class KroneckerConnection(ConstrainedConnection):
    """The stream matrix U_1 ⊗ … ⊗ U_K, n = 2^K, with each U_k between the identity and the swap of two.

    Args:
        size: D.
        num_streams: n.
        mixes: whether the streams are mixed at all.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, mixes: bool, eps: float) -> None:
        self.num_factors = num_streams.bit_length() - 1
        super().__init__(size, num_streams, 2 * self.num_factors if mixes else 0, mixes, eps)

    def reset(self, number: int, alpha_init: float, generator: torch.Generator, std: float) -> None:
        super().reset(number, alpha_init, generator, std)
        if self.mixes:
            nn.init.constant_(self.mix, -8.0)
            self.mix[:, 0] = 0.0  # the identity

    def mix_shape(self) -> tuple[int, ...]:
        return (self.num_factors, 2)

    def matrix(self, logits: Tensor) -> Tensor:
        return product_of_swaps(logits.softmax(-1))

    def flops(self) -> int:
        products = sum(1 << 2 * factors for factors in range(2, self.num_factors + 1))
        return super().flops() + (4 * 2 * self.num_factors + products) * self.mixes


class Config(MixerConfig):
    """Options of KromHC."""

    num_streams: int = Field(4, ge=2, description="n residual streams, a power of two.")
    alpha_init: float = Field(0.01, gt=0, description="Initial scale of the part that depends on the token.")


class KromHC(StreamMixer[Config]):
    """Several residual streams, mixed by exactly doubly stochastic matrices of few parameters."""

    name = "krom_hc"
    card = MixerCard(
        title="KromHC",
        summary="As mHC, with the stream matrix as a Kronecker product of 2 × 2 doubly stochastic ones.",
        paper="arXiv 2601.21579",
        equation=(
            "h = Σ_i pre_i·S_i,  u = f(norm(h)),  S_i ← Σ_j res_ij·S_j + post_i·u\n"
            "logits a·W·RMSNorm(S) + b; pre = σ, post = 2σ; the head reads Σ_i softmax(c)_i·S_i\n"
            "res = U_1 ⊗ … ⊗ U_K, n = 2^K;  U_k = p_k·[1 0; 0 1] + (1 − p_k)·[0 1; 1 0],  (p_k, 1 − p_k) = softmax"
        ),
        family="streams",
        acts_on="hidden states, before and after each sublayer",
        parameters="about 2L·(2·log₂ n + 2n + 1)·n·D",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="num_streams·D·e",
        notes=(
            "Every unrolled sublayer has weights of its own. All factors are 2 × 2, so n is a power of two; the first "
            "one tells the halves of the streams apart. As in mhc_lite of hyper_connections, the head, the initial "
            "pre and post and W are those of mhc there, so that the methods differ in the stream matrix alone (the "
            "paper's code starts with W = 0 and one stream ahead of the others); identities start with logit 0, "
            "swaps with −8, as in the paper's code. All factors of a sublayer share the scale of their moving part. "
            "At the first sublayer all streams are the embedding and the matrix changes nothing, so there is none."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        streams = config.num_streams
        if streams & (streams - 1):
            raise MixerError(
                f"krom_hc makes its matrix of 2 × 2 ones: num_streams must be a power of two, not {streams}"
            )
        size, eps = shape.hidden_size, shape.norm_eps
        connections = [KroneckerConnection(size, streams, number > 0, eps) for number in range(2 * shape.num_steps)]
        super().__init__(config, shape, connections, streams, config.alpha_init, has_head=True)


def product_of_swaps(weights: Tensor) -> Tensor:
    """U_1 ⊗ … ⊗ U_K of 2 × 2 matrices U_k = weights_k0·identity + weights_k1·swap.

    Args:
        weights: [..., K, 2].

    Returns:
        [..., 2^K, 2^K]; where each pair of weights sums to 1, so do all rows and columns, up to rounding.
    """
    product, *others = torch.stack([weights, weights.flip(-1)], dim=-2).unbind(-3)
    for factor in others:
        product = (product[..., :, None, :, None] * factor[..., None, :, None, :]).flatten(-4, -3).flatten(-2, -1)
    return product
