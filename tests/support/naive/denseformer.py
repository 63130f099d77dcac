"""DenseFormer (arXiv 2402.02622).

X_0 is the embedding, X_t = block_t(y_{t−1}) and y_0 = X_0. If p divides t, y_t = Σ_j a_{t,j} X_j over the
j ≤ t with j ≡ t (mod k), ascending; otherwise y_t = X_t. The head reads y_L. Averages read the raw X_j, never
an earlier y_j.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from case import LOOPED, SMALL, ZooCase
from golden_cases import Golden, assembled, golden, without
from mixerzoo import Mixer, Site
from mixerzoo.testing import Case, Reference
from mixerzoo.testing.reference import Begin, TokenMixer, weighted_sum

CASES = (
    ZooCase("denseformer"),
    ZooCase("denseformer", {"dilation": 2, "period": 3}),
    ZooCase("denseformer", {"dilation": 3, "period": 2}, LOOPED),
)
OPTIONS = st.fixed_dictionaries({"dilation": st.integers(1, 4), "period": st.integers(1, 4)})


class DenseFormer(TokenMixer):
    """A weighted average of all block outputs after each block.

    Args:
        embedding: of the token [D].
        alphas: t → a_t [⌊t/k⌋ + 1], for every t from 1 to L that p divides.
        dilation: k.
        period: p.
    """

    def __init__(self, embedding: Tensor, alphas: Mapping[int, Tensor], dilation: int, period: int) -> None:
        super().__init__(embedding)
        self.alphas, self.dilation, self.period = alphas, dilation, period
        self.raw = [embedding]

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.x = self.x + y
        if branch == "mlp":
            self.end_block(t=step + 1)

    def end_block(self, t: int) -> None:
        """X_t is complete: keep it, and replace the stream by y_t."""
        self.raw.append(self.x)
        if t % self.period == 0:
            averaged = [self.raw[j] for j in range(t + 1) if j % self.dilation == t % self.dilation]
            self.x = weighted_sum(list(self.alphas[t]), averaged)


def begin(mixer: Mixer) -> Begin:
    options = mixer.config.model_dump()
    alphas = {int(name.removeprefix("weights.")): alpha for name, alpha in mixer.state_dict().items()}
    return lambda embedding, token: DenseFormer(embedding, alphas, options["dilation"], options["period"])


def begin_checkpoint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Begin:
    """The reference with the parameters of a checkpoint of the reference implementation."""
    prefix = "model.densetransformer_dwa.alphas."
    alphas = {int(name.removeprefix(prefix)) + 1: a for name, a in tensors.items() if name.startswith(prefix)}
    dilation, period = config["denseformer_dwa_dilation"], config["denseformer_dwa_period"]
    return lambda embedding, token: DenseFormer(embedding, alphas, dilation, period)


def averaged_depths(mixer: Mixer) -> dict[int, list[int]]:
    """t → the j whose X_j the average after block t reads."""
    options = mixer.config.model_dump()
    return {
        t: [j for j in range(t + 1) if (t - j) % options["dilation"] == 0]
        for t in range(options["period"], mixer.shape.num_steps + 1, options["period"])
    }


def in_flight_bytes(mixer: Mixer, dtype: torch.dtype) -> int:
    """Inside a block: the stream, and the X_j that this or a later average reads."""
    averages = averaged_depths(mixer)
    most = 0
    for t in range(1, mixer.shape.num_steps + 1):
        read_later = set().union(*(read for u, read in averages.items() if u >= t))
        most = max(most, 1 + len([j for j in read_later if j < t]))
    return most * mixer.shape.hidden_size * dtype.itemsize


def flops_per_token(mixer: Mixer) -> int:
    """A multiplication and an addition for each channel of each X_j that is read."""
    return 2 * mixer.shape.hidden_size * sum(map(len, averaged_depths(mixer).values()))


def sources(mixer: Mixer, site: Site) -> tuple[Site | None, ...]:
    """The blocks that an average reads, each by its last sublayer."""
    if site.branch == "attention":
        return ()
    order = mixer.shape.order
    depths = averaged_depths(mixer).get(site.step + 1, [])
    return tuple(Site(j - 1, order[j - 1], "mlp") if j else None for j in depths)


def shown(mixer: Mixer) -> tuple[str, ...]:
    """The averages, which blocks end with."""
    return ("write",)


def initial(mixer: Mixer) -> dict[str, Tensor]:
    """1 for the block's own output, 0 for all others."""
    return {f"weights.{t}": torch.eye(len(read))[-1] for t, read in averaged_depths(mixer).items()}


def never_averaging() -> Golden:
    """A dilation longer than the decoder is deep leaves one weight an average; with ones it is a plain decoder."""
    plain = golden("vanilla_base")
    alphas = {f"model.densetransformer_dwa.alphas.{t}": torch.ones(1) for t in range(6)}
    config = {"baseline_mode": "denseformer", "denseformer_dwa_dilation": 7, "denseformer_dwa_period": 1}
    return replace(plain, name="denseformer_d7", config={**plain.config, **config}, tensors={**plain.tensors, **alphas})


CHECKPOINTS = assembled(
    "denseformer",
    without(golden("denseformer_d1_p1"), "denseformer_dwa_dilation", "denseformer_dwa_period", "baseline_mode"),
    never_averaging(),
)
#: No depth to average at.
REFUSED = (Case({**SMALL, "num_layers": 3}, {"period": 4}),)
REFERENCE = Reference(
    begin, in_flight_bytes, flops_per_token, sources, initial, CHECKPOINTS, refused=REFUSED, shown=shown
)
