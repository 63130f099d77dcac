"""Hyper-Connections (HC, arXiv 2409.19606), mHC (arXiv 2512.24880) and mHC-lite (arXiv 2601.05732).

n streams S_i, all starting at the embedding. A sublayer reads h = Σ_i pre_i S_i and gives u; then
S_i ← Σ_j res_ij S_j + post_i u. The head reads a weighted sum of the streams.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, POST_ROPE, SMALL, ZooCase
from golden_cases import Golden, assembled, golden, naive_traces, without
from mixerzoo import Mixer, ParameterRole, Site
from mixerzoo.testing import Case, Drawn, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, rms_norm, softmax, weighted_sum

CASES = (
    ZooCase("hyper_connections"),
    ZooCase("hyper_connections", {"dynamic": False, "num_streams": 3}, LOOPED),
    ZooCase("hyper_connections", {"variant": "mhc", "num_streams": 2}, POST_ROPE),
    ZooCase("hyper_connections", {"variant": "mhc", "num_streams": 3, "sinkhorn_iterations": 3}, LOOPED),
    ZooCase("hyper_connections", {"variant": "mhc", "num_streams": 1}),
    ZooCase("hyper_connections", {"variant": "mhc_lite", "num_streams": 3}),
    ZooCase("hyper_connections", {"variant": "mhc_lite", "num_streams": 2}, LOOPED),
)
_ALPHA = {"alpha_init": st.sampled_from([0.01, 1.0])}
OPTIONS = st.one_of(
    st.fixed_dictionaries({"variant": st.just("hc"), "num_streams": st.integers(1, 4), **_ALPHA}),
    st.fixed_dictionaries({"variant": st.just("hc"), "num_streams": st.integers(1, 4), "dynamic": st.just(False)}),
    st.fixed_dictionaries({"variant": st.just("mhc"), "num_streams": st.just(1), **_ALPHA}),
    st.fixed_dictionaries(
        {
            "variant": st.just("mhc"),
            "num_streams": st.integers(2, 4),
            "sinkhorn_iterations": st.integers(1, 20),
            **_ALPHA,
        }
    ),
    st.fixed_dictionaries({"variant": st.just("mhc_lite"), "num_streams": st.integers(2, 4), **_ALPHA}),
)
REFUSED = tuple(
    Case(SMALL, options)
    for options in (
        {"variant": "hc", "sinkhorn_iterations": 3},
        {"variant": "mhc_lite", "sinkhorn_iterations": 3},
        {"variant": "mhc", "num_streams": 1, "sinkhorn_iterations": 3},
        {"variant": "hc", "dynamic": False, "alpha_init": 1.0},
        {"variant": "mhc", "dynamic": False},
        {"variant": "mhc_lite", "dynamic": False},
        {"variant": "mhc_lite", "num_streams": 1},
    )
)

Matrix = list[list[Tensor]]


class Streams(TokenMixer):
    """n streams; a subclass says which weights a sublayer has.

    Args:
        embedding: of the token [D].
        num_streams: n.
    """

    def __init__(self, embedding: Tensor, num_streams: int) -> None:
        super().__init__(embedding)
        self.streams = [embedding] * num_streams
        self.done = 0
        self.post: list[Tensor] = []
        self.res: Matrix = []

    def weights(self, number: int) -> tuple[list[Tensor], list[Tensor], Matrix]:
        """pre, post and res of a sublayer, from the streams before it."""
        raise NotImplementedError

    def read(self, step: int, layer: int, branch: str) -> Tensor:
        pre, self.post, self.res = self.weights(self.done)
        return weighted_sum(pre, self.streams)

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        mixed = [weighted_sum(row, self.streams) for row in self.res]
        self.streams = [stream + post * y for stream, post in zip(mixed, self.post, strict=True)]
        self.done += 1

    def finish(self) -> Tensor:
        return weighted_sum([torch.ones(())] * len(self.streams), self.streams)


class HC(Streams):
    """Every weight is its static part + s·tanh(norm(S_j)·w).

    Args:
        embedding: of the token [D].
        parameters: of each sublayer: ``pre`` A_m [n], ``post`` B [n], ``mix`` [n·n] (i·n + j: how much the new stream
            i takes of stream j; A_r transposed); dynamic: ``projection`` [2 + n, D], the rows of A_m, of B and of the
            new streams, ``scale_mix`` s_α and ``scale_post`` s_β.
        num_streams: n.
        eps: of the norm.
    """

    def __init__(self, embedding: Tensor, parameters: list[Mapping[str, Tensor]], num_streams: int, eps: float) -> None:
        super().__init__(embedding, num_streams)
        self.parameters, self.eps = parameters, eps

    def weights(self, number: int) -> tuple[list[Tensor], list[Tensor], Matrix]:
        own, n = self.parameters[number], len(self.streams)
        pre, post = list(own["pre"]), list(own["post"])
        res = [[own["mix"][i * n + j] for j in range(n)] for i in range(n)]
        if "projection" in own:
            for j, stream in enumerate(self.streams):
                normed = rms_norm(stream, torch.ones_like(stream), self.eps)
                moved = torch.tanh(own["projection"] @ normed)
                pre[j] = pre[j] + own["scale_mix"] * moved[0]
                post[j] = post[j] + own["scale_post"] * moved[1]
                for i in range(n):
                    res[i][j] = res[i][j] + own["scale_mix"] * moved[2 + i]
        return pre, post, res


class MHC(Streams):
    """r = W RMSNorm(all streams, one after another); pre = σ(a r + b), post = 2σ(a r + b), res = Sinkhorn(a r + b).

    Args:
        embedding: of the token [D].
        parameters: of each sublayer: ``norm`` [n·D], ``projection`` W (rows: n pre, n post, then res), the b ``pre``
            [n], ``post`` [n] and ``mix``, and the a ``scale_pre``, ``scale_post`` and ``scale_mix``.
        head: logits of the streams' weights in what the head reads [n].
        eps: of the norm.
        iterations: of Sinkhorn.
    """

    def __init__(
        self,
        embedding: Tensor,
        parameters: list[Mapping[str, Tensor]],
        head: Tensor,
        eps: float,
        iterations: int,
    ) -> None:
        super().__init__(embedding, len(head))
        self.parameters, self.head, self.eps, self.iterations = parameters, head, eps, iterations

    def weights(self, number: int) -> tuple[list[Tensor], list[Tensor], Matrix]:
        own, n = self.parameters[number], len(self.streams)
        r = own["projection"] @ rms_norm(torch.cat(self.streams), own["norm"], self.eps)
        pre = [1 / (1 + torch.exp(-(own["scale_pre"] * r[i] + own["pre"][i]))) for i in range(n)]
        post = [2 / (1 + torch.exp(-(own["scale_post"] * r[n + i] + own["post"][i]))) for i in range(n)]
        return pre, post, self.res_of(own, r[2 * n :])

    def res_of(self, own: Mapping[str, Tensor], r: Tensor) -> Matrix:
        """The stream matrix from its rows of r."""
        n = len(self.streams)
        if "mix" not in own:
            # The only doubly stochastic matrix of one stream; the library keeps no logit of it.
            return [[torch.ones(()).double()]]
        logits = [[own["scale_mix"] * r[i * n + j] + own["mix"][i, j] for j in range(n)] for i in range(n)]
        return sinkhorn(logits, self.iterations)

    def finish(self) -> Tensor:
        return weighted_sum(softmax(list(self.head)), self.streams)


class MHCLite(MHC):
    """As mHC, with res = Σ_k softmax_k(a r + b)·P_k over all permutation matrices P_k, in lexicographic order."""

    def res_of(self, own: Mapping[str, Tensor], r: Tensor) -> Matrix:
        n = len(self.streams)
        permutations = list(itertools.permutations(range(n)))
        if "mix" in own:
            weights = softmax([own["scale_mix"] * r[k] + own["mix"][k] for k in range(len(permutations))])
        else:
            # Where all streams are equal, as at the first sublayer, any weights do; the library has none.
            weights = [torch.ones(()).double() / len(permutations)] * len(permutations)
        res = [[torch.zeros(()).double() for _ in range(n)] for _ in range(n)]
        for weight, permutation in zip(weights, permutations, strict=True):
            for i, j in enumerate(permutation):
                res[i][j] = res[i][j] + weight
        return res


def sinkhorn(logits: Matrix, iterations: int) -> Matrix:
    """exp, at least 1e-12; then every row divided by its sum and every column by its own, again and again.

    Args:
        logits: n rows of n scalars; the greatest is subtracted first.
        iterations: how often.
    """
    n = len(logits)
    highest = max(max(row) for row in logits)
    matrix = [[torch.clamp(torch.exp(logit - highest), min=1e-12) for logit in row] for row in logits]
    for _ in range(iterations):
        matrix = [[entry / sum(row) for entry in row] for row in matrix]
        sums = [sum(matrix[i][j] for i in range(n)) for j in range(n)]
        matrix = [[matrix[i][j] / sums[j] for j in range(n)] for i in range(n)]
    return matrix


def begin(mixer: Mixer) -> Begin:
    options, state, eps = mixer.config.model_dump(), mixer.state_dict(), mixer.shape.norm_eps
    parameters: list[Mapping[str, Tensor]] = []
    for number in range(2 * mixer.shape.num_steps):
        prefix = f"connections.{number}."
        parameters.append({name.removeprefix(prefix): p for name, p in state.items() if name.startswith(prefix)})
    if options["variant"] == "hc":
        return lambda embedding, token: HC(embedding, parameters, options["num_streams"], eps)
    method = MHC if options["variant"] == "mhc" else MHCLite
    head = state.get("head", torch.zeros(1))
    return lambda embedding, token: method(embedding, parameters, head, eps, options["sinkhorn_iterations"])


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """The streams."""
    return mixer.config.model_dump()["num_streams"] * mixer.shape.hidden_size * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """A product and a sum for each term: of the read, of the new streams, of the output in each of them, less the
    plain stream's sum; and what the weights cost, the norm counted at the read and again at the write."""
    options, size = mixer.config.model_dump(), mixer.shape.hidden_size
    n = options["num_streams"]
    matrices = math.factorial(n)
    # The head: a sum, or a weighted sum.
    flops = n * size if options["variant"] == "hc" or n == 1 else 2 * n * size
    for number in range(2 * mixer.shape.num_steps):
        mixes = {"hc": True, "mhc": n > 1, "mhc_lite": number > 0}[options["variant"]]
        flops += 2 * n * size + (2 * n * n * size if mixes else 0) + 2 * n * size - size
        if options["variant"] == "hc":
            if options["dynamic"]:
                # Of each stream: its norm, W, and 1/rms, tanh, s and the static part of each weight.
                flops += n * (2 * 2 * size + 2 * (n + 2) * size + 4 * (n + 2))
            continue
        logits = 2 * n + ((n * n if options["variant"] == "mhc" else matrices) if mixes else 0)
        # The norm, W, and 1/rms, a and b of each logit; σ, and σ and its double.
        flops += 2 * 2 * n * size + 2 * logits * n * size + 3 * logits + n + 2 * n
        if options["variant"] == "mhc" and mixes:
            # Maximum, difference, exp and clamp; then a sum and a division, over rows and over columns.
            flops += 4 * n * n + options["sinkhorn_iterations"] * 2 * (2 * n * n)
        elif mixes:
            # Softmax; then each permutation's weight goes to n entries.
            flops += 4 * matrices + n * matrices
    return flops


def begin_checkpoint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Begin:
    """The reference with the parameters of a checkpoint of the reference implementation."""
    own = {
        "norm": "mhc_input_norm.weight",
        "projection": "mhc_dynamic_projection.weight",
        "pre": "pre_logits",
        "post": "post_logits",
        "mix": "residual_logits",
        "scale_pre": "alpha_pre",
        "scale_post": "alpha_post",
        "scale_mix": "alpha_res",
    }
    sublayers = [
        {part: tensors[f"model.layers.{layer}.{branch}_residual_connector.{name}"] for part, name in own.items()}
        for layer in range(config["num_hidden_layers"])
        for branch in ("attn", "mlp")
    ]
    head = tensors["model.residual_stream_projector.reduce_logits"]
    eps, iterations = config["rms_norm_eps"], config["mhc_sinkhorn_iters"]
    return lambda embedding, token: MHC(embedding, sublayers, head, eps, iterations)


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    return ()


def shown(mixer: Mixer) -> tuple[str, ...]:
    """Every read, and the head's where it is no plain sum."""
    options = mixer.config.model_dump()
    return ("read",) if options["variant"] == "hc" or options["num_streams"] == 1 else ("read", "finish")


def initial(mixer: Mixer) -> dict[str, float | Tensor | Drawn]:
    """HC: A_m one-hot, B = 1, A_r = I, W = 0. mHC: b_pre = logit(1/n), b_post = 0, b_res near the identity."""
    options = mixer.config.model_dump()
    n, alpha = options["num_streams"], options["alpha_init"]
    values: dict[str, float | Tensor | Drawn] = {}
    for number in range(2 * mixer.shape.num_steps):
        if options["variant"] == "hc":
            own: dict[str, float | Tensor | Drawn] = {
                "pre": torch.eye(n)[number % n],
                "post": 1.0,
                "mix": torch.eye(n).flatten(),
            }
            if options["dynamic"]:
                own |= {"projection": 0.0, "scale_mix": alpha, "scale_post": alpha}
        else:
            pre = 1 / n if n > 1 else 0.99
            own = {"norm": 1.0, "projection": Drawn(), "pre": math.log(pre / (1 - pre)), "post": 0.0}
            own |= {"scale_pre": alpha, "scale_post": alpha}
            if options["variant"] == "mhc" and n > 1:
                near = torch.full((n, n), 0.01 / (n - 1)).fill_diagonal_(0.99)
                own |= {"mix": near.log(), "scale_mix": alpha}
            elif options["variant"] == "mhc_lite" and number > 0:
                identity = [permutation == tuple(range(n)) for permutation in itertools.permutations(range(n))]
                own |= {"mix": torch.tensor([0.0 if same else -8.0 for same in identity]), "scale_mix": alpha}
        values |= {f"connections.{number}.{name}": value for name, value in own.items()}
    return values if options["variant"] == "hc" or n == 1 else {**values, "head": 0.0}


def with_streams(n: int) -> Golden:
    """The golden has two streams. Weights of another number are drawn, and the logits are this reference's."""
    like = golden("mhc_n2")
    generator = torch.Generator().manual_seed(n)
    size = like.config["hidden_size"]
    shapes = {
        "pre_logits": (n,),
        "post_logits": (n,),
        "residual_logits": (n, n),
        "reduce_logits": (n,),
        "mhc_input_norm.weight": (n * size,),
        "mhc_dynamic_projection.weight": (2 * n + n * n, n * size),
    }
    tensors = dict(like.tensors)
    for name in sorted(tensors):
        for ending, shape in shapes.items():
            if name.endswith(ending):
                tensors[name] = torch.randn(shape, generator=generator) / math.sqrt(shape[-1])
    config = {**like.config, "mhc_num_streams": n, "residual_baseline_num_streams": n}
    tokens = like.tokens[:1, :3]
    case = replace(like, name=f"mhc_n{n}", config=config, tensors=tensors, expected={"input_ids": tokens})
    begun = begin_checkpoint(config, {name: tensor.double() for name, tensor in tensors.items()})
    logits = torch.stack([trace.logits for trace in naive_traces(case, "pre_rope", begun)])
    return replace(case, expected={"input_ids": tokens, "logits.pre_rope": logits})


def roles(mixer: Mixer) -> dict[str, ParameterRole]:
    """What looks at the streams is a projection; the static part is exempt."""
    return {name: ParameterRole(decay=True) for name in mixer.state_dict() if name.endswith("projection")}


CHECKPOINTS = assembled(
    "mhc",
    without(golden("mhc_n2"), "mhc_num_streams", "mhc_sinkhorn_iters"),
    without(with_streams(1), "baseline_mode"),
    without(with_streams(4), "mhc_num_streams", "residual_baseline_num_streams"),
)
#: The fewest and the most streams.
BOUNDS = tuple(
    Case(SMALL, {"variant": variant, "num_streams": n})
    for variant, n in (("hc", 1), ("mhc", 1), ("mhc_lite", 2), ("mhc_lite", 5))
)
REFERENCE = Reference(
    begin, in_flight_bytes, flops_per_token, sources, initial, CHECKPOINTS, BOUNDS, REFUSED, shown=shown, roles=roles
)
