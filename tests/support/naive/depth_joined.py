"""A token's earlier keys and values join its softmax over the sequence: `adhoc.DepthJoined`.

Those of every earlier step, and one made of what the MLPs gave, which has no RoPE yet.
"""

from __future__ import annotations

from torch import Tensor

from case import POST_ROPE, ZooCase
from mixerzoo import Mixer
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import Begin, Heads, Rotation, TokenMixer

CASES = (ZooCase("depth_joined"), ZooCase("depth_joined", model=POST_ROPE))


class DepthJoined(TokenMixer):
    """The residual stream, the keys and values of the steps so far, and the outputs of the MLPs.

    Args:
        embedding: of the token [D].
        num_kv_heads: G.
        head_dim: d.
    """

    def __init__(self, embedding: Tensor, num_kv_heads: int, head_dim: int) -> None:
        super().__init__(embedding)
        self.sizes = num_kv_heads, head_dim
        self.kept: list[tuple[list[Tensor], list[Tensor]]] = []
        self.light: list[list[Tensor]] = []

    def mix_kv(
        self, step: int, layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        self.kept.append((k, v))
        return k, v

    def depth_kv(self, step: int, layer: int, q: list[Tensor], rotate: Rotation) -> tuple[Heads, Heads]:
        keys = [k for k, _ in self.kept[:-1]] + [[rotate(head) for head in heads] for heads in self.light]
        values = [v for _, v in self.kept[:-1]] + self.light
        return keys, values

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        super().write(step, layer, branch, y)
        if branch == "mlp":
            # The first d channels serve as key and as value of every head.
            num_kv_heads, head_dim = self.sizes
            self.light.append([y[:head_dim]] * num_kv_heads)


def begin(mixer: Mixer) -> Begin:
    shape = mixer.shape
    return lambda embedding, token: DepthJoined(embedding, shape.num_kv_heads, shape.head_dim)


REFERENCE = Reference(begin)
