"""Depth-Attention (arXiv 2606.05014).

Layer l mixes into its value the values of its source layers D_l at the same token. Per key/value head b, with
q̄_b the mean over the query heads that share it:

    α = softmax over D_l ∪ {l} of q̄_b · k_b^j / √d
    ṽ^l = α_l v^l + Σ_{j ∈ D_l} α_j ṽ^j

Sources give the keys of their own layer and their already mixed values; the layer itself gives its raw value.
Without a source ṽ = v. The residual stream is the plain one.
"""

from __future__ import annotations

import math

from torch import Tensor

from naive.decoder import softmax, weighted_sum
from naive.residual import Residual


def source_layers(layer: int, stride: int, recent_window: int) -> list[int]:
    """D_l, ascending.

    Args:
        layer: l.
        stride: s, anchored at layer 0; up to 1 means all layers.
        recent_window: w, the last w layers are sources too; up to 0 means none.
    """
    return [j for j in range(layer) if stride <= 1 or j % stride == 0 or layer - j <= recent_window]


class DepthAttention(Residual):
    """The residual stream, and what each layer has given to the layers above.

    In a looped decoder a layer runs several times. The source layers are then taken at their latest run so
    far, and the layer's own earlier runs are sources as well.

    Args:
        embedding: of the token [D].
        stride: s, in physical layers.
        recent_window: w, in physical layers.
    """

    def __init__(self, embedding: Tensor, stride: int, recent_window: int) -> None:
        super().__init__(embedding)
        self.stride, self.recent_window = stride, recent_window
        #: layer → its runs so far, each G keys [d] and G mixed values [d].
        self.runs: dict[int, list[tuple[list[Tensor], list[Tensor]]]] = {}
        #: For each run of a layer, in order: alphas[g] are the weights of its sources, its own last.
        self.alphas: list[list[list[Tensor]]] = []

    def mix_value(self, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        sources = []
        for j in source_layers(layer, self.stride, self.recent_window):
            if j in self.runs:
                sources.append(self.runs[j][-1])
        sources += self.runs.get(layer, [])

        mixed, alphas = [], []
        group = len(q) // len(k)
        for b in range(len(k)):
            mean_q = sum(q[b * group + 1 : (b + 1) * group], start=q[b * group]) / group
            keys = [source_k[b] for source_k, _ in sources] + [k[b]]
            values = [source_v[b] for _, source_v in sources] + [v[b]]
            alpha = softmax([mean_q @ key / math.sqrt(len(key)) for key in keys])
            alphas.append(alpha)
            mixed.append(weighted_sum(alpha, values) if sources else v[b])
        self.alphas.append(alphas)
        self.runs.setdefault(layer, []).append((k, mixed))
        return mixed
