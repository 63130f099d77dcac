"""Hyper-Connections (arXiv 2409.19606), mHC (arXiv 2512.24880) and mHC-lite (arXiv 2601.05732).

Several residual streams run side by side. Each sublayer reads a weighted sum of them, and after it they are mixed
with each other and its output is added to each with a weight. The three variants differ in how the weights are made.
Letters in shapes: B batch, T tokens, D hidden size, n streams.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    Context,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    MixerError,
    Neutral,
    ParameterRole,
    ReferenceReading,
    Site,
    hookimpl,
)

#: mHC-lite weighs n! permutations at every sublayer.
MAX_LITE_STREAMS = 5


class Config(MixerConfig):
    """Options of Hyper-Connections."""

    variant: Literal["hc", "mhc", "mhc_lite"] = Field(
        "hc", description="hc: free weights; mhc: stream matrix by Sinkhorn; mhc_lite: by permutations."
    )
    num_streams: int = Field(4, ge=1, description="n residual streams (mhc_lite: 2 to 5).")
    dynamic: bool = Field(True, description="Whether the weights depend on the token (mhc, mhc_lite: always).")
    sinkhorn_iterations: int = Field(20, ge=1, description="Passes over rows and columns (mhc only).")
    alpha_init: float = Field(0.01, gt=0, description="Initial scale of the part that depends on the token.")


class WriteWeights(NamedTuple):
    """What happens to the streams after a sublayer.

    Attributes:
        mix: [..., n, n], new stream i takes ``mix[i, j]`` of stream j; None leaves them as they are.
        post: [..., n], how much of the output each stream gets.
    """

    mix: Tensor | None
    post: Tensor


class Connection(nn.Module, ABC):
    """The weights of one sublayer, from the streams [B, T, n, D] before it."""

    @abstractmethod
    def reset(self, number: int, config: Config, generator: torch.Generator, std: float) -> None:
        """Give every parameter its initial value.

        Args:
            number: of the sublayer, from 0.
            config: the mixer's options.
            generator: of all randomness.
            std: of the decoder's own initialisation.
        """

    @abstractmethod
    def read_weights(self, streams: Tensor) -> Tensor:
        """Of each stream in what the sublayer reads: [..., n]."""

    @abstractmethod
    def write_weights(self, streams: Tensor) -> WriteWeights:
        """Of mixing the streams and of adding the output to them."""

    @abstractmethod
    def flops(self) -> int:
        """Operations per token to make the weights."""


class FreeConnection(Connection):
    """HC: weights without constraint, static + s·tanh(norm(S)·W).

    Args:
        size: D.
        num_streams: n.
        dynamic: whether there is the second term.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, dynamic: bool, eps: float) -> None:
        super().__init__()
        self.pre = nn.Parameter(torch.empty(num_streams))
        self.post = nn.Parameter(torch.empty(num_streams))
        self.mix = nn.Parameter(torch.empty(num_streams**2))
        self.dynamic, self.eps = dynamic, eps
        if dynamic:
            # Of each stream: its weight in the read, its weight of the output, its part in each new stream.
            self.projection = nn.Parameter(torch.empty(2 + num_streams, size))
            # Of shape [1]: fully_shard takes no scalars.
            self.scale_mix = nn.Parameter(torch.empty(1))
            self.scale_post = nn.Parameter(torch.empty(1))

    def reset(self, number: int, config: Config, generator: torch.Generator, std: float) -> None:
        nn.init.zeros_(self.pre)
        self.pre[number % len(self.pre)] = 1.0
        nn.init.ones_(self.post)
        nn.init.eye_(self.mix.view(len(self.pre), -1))
        if self.dynamic:
            nn.init.zeros_(self.projection)
            nn.init.constant_(self.scale_mix, config.alpha_init)
            nn.init.constant_(self.scale_post, config.alpha_init)

    def read_weights(self, streams: Tensor) -> Tensor:
        if not self.dynamic:
            return self.pre
        moved = _normed_product(streams, self.projection[:1], self.eps).tanh().squeeze(-1)
        return self.pre + self.scale_mix * moved

    def write_weights(self, streams: Tensor) -> WriteWeights:
        static = self.mix.view(len(self.pre), -1)
        if not self.dynamic:
            return WriteWeights(static, self.post)
        moved = _normed_product(streams, self.projection[1:], self.eps).tanh()
        # Stream j's parts in the new streams stand in its row; they are column j of the matrix.
        mix = static + self.scale_mix * moved[..., 1:].transpose(-1, -2)
        return WriteWeights(mix, self.post + self.scale_post * moved[..., 0])

    def flops(self) -> int:
        if not self.dynamic:
            return 0
        rows, size = self.projection.shape
        # The norm before the read and again before the write, W, and four operations a weight.
        return len(self.pre) * (4 * size + 2 * size * rows + 4 * rows)


class ConstrainedConnection(Connection):
    """mHC: pre = σ(·), post = 2σ(·), and a doubly stochastic stream matrix, of logits a·(W z) + b with z = RMSNorm(S).

    Args:
        size: D.
        num_streams: n.
        num_mix_logits: how many logits the stream matrix is made of.
        mixes: whether there is a stream matrix; else the rows of its logits are there, and nobody reads them.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, num_mix_logits: int, mixes: bool, eps: float) -> None:
        super().__init__()
        self.num_streams, self.mixes, self.eps = num_streams, mixes, eps
        self.norm = nn.Parameter(torch.empty(num_streams * size))
        self.projection = nn.Parameter(torch.empty(2 * num_streams + num_mix_logits, num_streams * size))
        self.pre = nn.Parameter(torch.empty(num_streams))
        self.post = nn.Parameter(torch.empty(num_streams))
        # Of shape [1]: fully_shard takes no scalars.
        self.scale_pre = nn.Parameter(torch.empty(1))
        self.scale_post = nn.Parameter(torch.empty(1))
        if mixes:
            self.mix = nn.Parameter(torch.empty(self.mix_shape()))
            self.scale_mix = nn.Parameter(torch.empty(1))

    @abstractmethod
    def mix_shape(self) -> tuple[int, ...]:
        """Shape of the stream matrix's logits."""

    @abstractmethod
    def matrix(self, logits: Tensor) -> Tensor:
        """Doubly stochastic [..., n, n] of logits [..., *mix_shape()]."""

    def reset(self, number: int, config: Config, generator: torch.Generator, std: float) -> None:
        nn.init.ones_(self.norm)
        nn.init.normal_(self.projection, std=std, generator=generator)
        # σ of it is 1/n; at 1 itself nothing would learn.
        nn.init.constant_(self.pre, -math.log(self.num_streams - 1) if self.num_streams > 1 else math.log(99))
        nn.init.zeros_(self.post)
        for scale in (self.scale_pre, self.scale_post, *([self.scale_mix] if self.mixes else [])):
            nn.init.constant_(scale, config.alpha_init)

    def read_weights(self, streams: Tensor) -> Tensor:
        logits = self._logits(streams, 0, self.num_streams)
        return (self.scale_pre * logits + self.pre).sigmoid()

    def write_weights(self, streams: Tensor) -> WriteWeights:
        logits = self._logits(streams, self.num_streams, self._num_logits())
        post = 2 * (self.scale_post * logits[..., : self.num_streams] + self.post).sigmoid()
        if not self.mixes:
            return WriteWeights(None, post)
        moved = logits[..., self.num_streams :].unflatten(-1, self.mix_shape())
        return WriteWeights(self.matrix(self.scale_mix * moved + self.mix), post)

    def flops(self) -> int:
        rows, size = self._num_logits(), self.projection.size(1)
        # The norm before the read and again before the write, W, and each logit's three operations; σ and 2σ.
        return 4 * size + 2 * size * rows + 3 * rows + 3 * self.num_streams

    def _num_logits(self) -> int:
        """How many rows of W are read."""
        return len(self.projection) if self.mixes else 2 * self.num_streams

    def _logits(self, streams: Tensor, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of W z, [B, T, last − first]."""
        return _normed_product(streams.flatten(-2), self.projection[first:last] * self.norm, self.eps)


class SinkhornConnection(ConstrainedConnection):
    """mHC: the stream matrix by alternately dividing rows and columns by their sums. Of one stream it is 1.

    Args:
        size: D.
        num_streams: n.
        iterations: how often.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, iterations: int, eps: float) -> None:
        # With one stream W has the row of the matrix's only logit all the same, as checkpoints of the reference do.
        super().__init__(size, num_streams, num_streams**2, num_streams > 1, eps)
        self.iterations = iterations

    def reset(self, number: int, config: Config, generator: torch.Generator, std: float) -> None:
        super().reset(number, config, generator, std)
        if self.mixes:
            nn.init.constant_(self.mix, math.log(0.01 / (self.num_streams - 1)))
            self.mix.fill_diagonal_(math.log(0.99))

    def mix_shape(self) -> tuple[int, ...]:
        return (self.num_streams, self.num_streams)

    def matrix(self, logits: Tensor) -> Tensor:
        return sinkhorn(logits, self.iterations)

    def flops(self) -> int:
        return super().flops() + 4 * self.num_streams**2 * (1 + self.iterations) * self.mixes


class PermutationConnection(ConstrainedConnection):
    """mHC-lite: the stream matrix as a softmax-weighted mean of all permutation matrices.

    Args:
        size: D.
        num_streams: n.
        mixes: whether the streams are mixed at all.
        eps: of the norm.
    """

    def __init__(self, size: int, num_streams: int, mixes: bool, eps: float) -> None:
        super().__init__(size, num_streams, math.factorial(num_streams) if mixes else 0, mixes, eps)

    def reset(self, number: int, config: Config, generator: torch.Generator, std: float) -> None:
        super().reset(number, config, generator, std)
        if self.mixes:
            nn.init.constant_(self.mix, -8.0)
            self.mix[0] = 0.0  # the identity

    def mix_shape(self) -> tuple[int, ...]:
        return (math.factorial(self.num_streams),)

    def matrix(self, logits: Tensor) -> Tensor:
        return mean_of_permutations(logits.softmax(-1), self.num_streams)

    def flops(self) -> int:
        return super().flops() + (4 + self.num_streams) * math.factorial(self.num_streams) * self.mixes


class HyperConnections(Mixer[Config]):
    """Several residual streams with learned connections. The state is the streams [B, T, n, D]."""

    name = "hyper_connections"
    Config = Config
    card = MixerCard(
        title="Hyper-Connections, mHC, mHC-lite",
        summary="Each sublayer reads a weighted sum of n residual streams, which are then mixed and get its output.",
        paper="arXiv 2409.19606",
        equation=(
            "h = Σ_i pre_i·S_i,  u = f(norm(h)),  S_i ← Σ_j res_ij·S_j + post_i·u\n"
            "hc: each weight is static + s·tanh(norm(S_j)·w); the head reads Σ_i S_i\n"
            "mhc: logits a·W·RMSNorm(S) + b; pre = σ, post = 2σ, res = Sinkhorn; the head reads Σ_i softmax(c)_i·S_i\n"
            "mhc_lite: as mhc, with res = Σ_k softmax_k·P_k over all permutations P_k"
        ),
        family="streams",
        acts_on="hidden states, before and after each sublayer",
        parameters=(
            "2L·(n + 2)·(n + D) + 4L for dynamic hc; about 2L·(n² + 2n + 1)·n·D for mhc and "
            "2L·(n! + 2n + 1)·n·D for mhc_lite"
        ),
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="num_streams·D·e",
        neutral=(
            "hc at initialisation: every stream equals the residual one bit for bit, and the head reads n times it, "
            "which its norm undoes up to eps; mhc and mhc_lite start close to it"
        ),
        neutral_settings=(Neutral(options={"variant": "hc"}, up_to_norm_eps=True),),
        dialects={
            "hc": "free weights, static or dynamic; the norm of the dynamic part is per stream and has no gain",
            "mhc": "arXiv 2512.24880, as in the reference checkpoints: one norm over all streams; Sinkhorn in float32",
            "mhc_lite": "arXiv 2601.05732: as mhc, but exactly doubly stochastic; n! logits for the stream matrix",
        },
        notes=(
            "Every unrolled sublayer has weights of its own. hc: the gain of the norm would be absorbed by W, so there "
            "is none. mhc_lite: the head and the initial pre and post are those of mhc, and W is drawn like there, so "
            "that the two differ in the stream matrix alone; the identity starts with logit 0, all others with −8. At "
            "its first sublayer all streams are the embedding and a doubly stochastic matrix changes nothing, so there "
            "is none. mhc needs W at the first sublayer too, because Sinkhorn's row sums are not exactly 1. mhc with "
            "one stream: stream matrix and head are exactly 1, so they have no parameters, and pre, whose logit(1/n) "
            "is infinite there, starts at 0.99."
        ),
    )
    reference_keys = frozenset(
        {"mhc_num_streams", "mhc_sinkhorn_iters", "mhc_alpha_init", "residual_baseline_num_streams"}
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        _refuse(config)
        self.num_streams = config.num_streams
        self.connections = nn.ModuleList(_connection(config, shape, i) for i in range(2 * shape.num_steps))
        #: Whether the head has weights to learn: that of a single stream is 1.
        self.has_head = config.variant != "hc" and config.num_streams > 1
        if self.has_head:
            self.head = nn.Parameter(torch.empty(config.num_streams))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for number, connection in enumerate(self.connections):
            assert isinstance(connection, Connection)
            connection.reset(number, self.config, generator, std)
        if self.has_head:
            nn.init.zeros_(self.head)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # The paper exempts the static part, which starts at an identity; what looks at the streams is a projection.
        return {name: ParameterRole(decay=True) for name, _ in self.named_parameters() if name.endswith("projection")}

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x.unsqueeze(-2).expand(*x.shape[:-1], self.num_streams, -1)

    def read(self, state: Tensor, site: Site) -> Tensor:
        return _weighted_sum(self._connection(site).read_weights(state), state)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        weights = self._connection(site).write_weights(state)
        mixed = state if weights.mix is None else _mix(weights.mix, state)
        return torch.addcmul(mixed, weights.post.to(state.dtype).unsqueeze(-1), y.unsqueeze(-2))

    def finish(self, state: Tensor) -> Tensor:
        if not self.has_head:
            return state.sum(-2)
        exact = torch.promote_types(state.dtype, torch.float32)
        return _weighted_sum(self.head.to(exact).softmax(-1), state)

    def last_token(self, state: Tensor) -> Tensor:
        return state[:, -1:]

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return self.num_streams * self.shape.hidden_size * dtype.itemsize

    def flops_per_token(self) -> int:
        streams = self.num_streams * self.shape.hidden_size
        flops = 2 * streams if self.has_head else streams
        for connection in self.connections:
            assert isinstance(connection, Connection)
            mixes = not isinstance(connection, ConstrainedConnection) or connection.mixes
            # Read, mix, and add the output, where a plain stream has one addition.
            flops += 4 * streams + 2 * self.num_streams * streams * bool(mixes) - self.shape.hidden_size
            flops += connection.flops()
        return flops

    @classmethod
    def read_reference(cls, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> ReferenceReading | None:
        if not any("_residual_connector." in name for name in tensors) and config.get("baseline_mode") != "mhc":
            return None
        options = {
            "variant": "mhc",
            "num_streams": config.get("mhc_num_streams", config.get("residual_baseline_num_streams", 4)),
            "sinkhorn_iterations": config.get("mhc_sinkhorn_iters", 20),
            "alpha_init": float(config.get("mhc_alpha_init", 0.01)),
        }
        parts = {
            "pre_logits": "pre",
            "post_logits": "post",
            "residual_logits": "mix",
            "mhc_input_norm.weight": "norm",
            "mhc_dynamic_projection.weight": "projection",
            "alpha_pre": "scale_pre",
            "alpha_post": "scale_post",
            "alpha_res": "scale_mix",
        }
        head = "model.residual_stream_projector.reduce_logits"
        names = {head: "head"}
        for layer in range(int(config["num_hidden_layers"])):
            for offset, branch in enumerate(("attn", "mlp")):
                prefix = f"model.layers.{layer}.{branch}_residual_connector"
                names |= {f"{prefix}.{part}": f"connections.{2 * layer + offset}.{own}" for part, own in parts.items()}
        # With one stream its matrix and its weight in the head are 1, whatever their logits.
        idle = ("residual_logits", "alpha_res", head) if options["num_streams"] == 1 else ()
        unused = frozenset(name for name in names if name.endswith(idle)) if idle else frozenset()
        return ReferenceReading(
            options, {name: own for name, own in names.items() if name in tensors and name not in unused}, unused
        )

    def _connection(self, site: Site) -> Connection:
        connection = self.connections[2 * site.step + (site.branch == "mlp")]
        assert isinstance(connection, Connection)
        return connection


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """A nearly doubly stochastic matrix: exp, then rows and columns divided by their sums in turn.

    Columns come last, so they sum to 1 up to rounding; rows do as far as the iterations have converged.

    Args:
        logits: [..., n, n], float32 or float64.
        iterations: passes over rows and columns.

    Returns:
        [..., n, n].
    """
    matrix = (logits - logits.amax((-2, -1), keepdim=True)).exp().clamp(min=1e-12)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(-1, keepdim=True)
        matrix = matrix / matrix.sum(-2, keepdim=True)
    return matrix


def mean_of_permutations(weights: Tensor, size: int) -> Tensor:
    """Σ_k weights_k·P_k over the permutation matrices of ``size``, in lexicographic order (the identity is first).

    Args:
        weights: [..., size!].
        size: rows of the matrices.

    Returns:
        [..., size, size]; where the weights sum to 1, so do all rows and columns, up to rounding.
    """
    if size == 1:
        return weights.unsqueeze(-1)
    # A permutation is where the first row goes, and a permutation of the other rows over the columns left.
    by_first = weights.unflatten(-1, (size, -1))
    others = mean_of_permutations(by_first, size - 1)
    columns = []
    for column in range(size):
        left = [others[..., first, :, column - (first < column)] for first in range(size) if first != column]
        columns.append(torch.stack(left).sum(0))
    return torch.cat([by_first.sum(-1).unsqueeze(-2), torch.stack(columns, dim=-1)], dim=-2)


def _refuse(config: Config) -> None:
    if config.variant == "hc":
        return
    if not config.dynamic:
        raise MixerError(
            f"dynamic: false is for variant: hc; {config.variant} always computes its weights from the token"
        )
    if config.variant == "mhc_lite" and config.num_streams < 2:
        raise MixerError("mhc_lite mixes streams with each other: num_streams must be at least 2")
    if config.variant == "mhc_lite" and config.num_streams > MAX_LITE_STREAMS:
        raise MixerError(
            f"mhc_lite weighs all n! permutations of its streams, {math.factorial(config.num_streams)} for "
            f"num_streams: {config.num_streams}; use at most {MAX_LITE_STREAMS} streams, or variant: mhc"
        )


def _connection(config: Config, shape: DecoderShape, number: int) -> Connection:
    size, eps = shape.hidden_size, shape.norm_eps
    if config.variant == "hc":
        return FreeConnection(size, config.num_streams, config.dynamic, eps)
    if config.variant == "mhc":
        return SinkhornConnection(size, config.num_streams, config.sinkhorn_iterations, eps)
    return PermutationConnection(size, config.num_streams, number > 0, eps)


def _normed_product(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """W·x / rms(x) [..., rows] of x [..., size] and W [rows, size], in float32 (float64 for float64)."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    # Divided after the product, so that no normed copy of the streams is made.
    return (exact @ weight.to(exact.dtype).T) * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)


def _weighted_sum(weights: Tensor, streams: Tensor) -> Tensor:
    """Σ_i weights_i·S_i [B, T, D] of weights [..., n] and streams [B, T, n, D]."""
    weights = weights.to(streams.dtype).unsqueeze(-1)
    total = weights[..., 0, :] * streams[..., 0, :]
    for i in range(1, streams.size(-2)):
        total = torch.addcmul(total, weights[..., i, :], streams[..., i, :])
    return total


def _mix(matrix: Tensor, streams: Tensor) -> Tensor:
    """Σ_j matrix_ij·S_j [B, T, n, D] of a matrix [..., n, n] and streams [B, T, n, D]."""
    # Not a product of matrices: autocast would round the streams to half precision.
    columns = matrix.to(streams.dtype).unsqueeze(-1)
    total = columns[..., 0, :] * streams[..., :1, :]
    for j in range(1, streams.size(-2)):
        total = torch.addcmul(total, columns[..., j, :], streams[..., j : j + 1, :])
    return total


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [HyperConnections]
