"""Where a mixer acts, and the sizes of the decoder that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Branch: TypeAlias = Literal["attention", "mlp"]


class Site(NamedTuple):
    """One place where the mixer acts.

    Attributes:
        step: unrolled depth, ``0 … num_steps − 1``.
        layer: the physical layer whose weights run there. It differs from ``step`` in looped decoders.
        branch: ``"attention"`` or ``"mlp"``.
    """

    step: int
    layer: int
    branch: Branch

    @property
    def number(self) -> int:
        """How many sublayers ran before this one: its place in ``DecoderShape.sites()``."""
        return 2 * self.step + (self.branch == "mlp")


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of the decoder that a mixer serves; all that it may know about it.

    Attributes:
        hidden_size: D.
        num_layers: physical layers.
        num_heads: query heads H.
        num_kv_heads: key/value heads G; divides ``num_heads``.
        head_dim: d.
        order: physical layer of each unrolled step, ``order[step] → layer``. ``(0, …, L−1)`` unless looped.
        norm_eps: epsilon of the decoder's RMSNorm.
        vocab_size: rows of the embedding.
        value_dim: width of a value head, where it differs from d (latent attention); 0: d.
        latent_dim: with multi-head latent attention, numbers that a token keeps in place of keys and values:
            the latent and the key with RoPE; else 0. Every head has keys of its own then: G = H.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    order: tuple[int, ...]
    norm_eps: float
    vocab_size: int
    value_dim: int = 0
    latent_dim: int = 0

    @property
    def v_head_dim(self) -> int:
        """Width of a value head."""
        return self.value_dim or self.head_dim

    @property
    def num_steps(self) -> int:
        """Unrolled depth: how many layers a token passes through."""
        return len(self.order)

    def sites(self) -> tuple[Site, ...]:
        """Every site in the order of the forward: attention, then MLP, of each step."""
        return sites_of(self.order)


def sites_of(order: Sequence[int]) -> tuple[Site, ...]:
    """The sites of steps, in the order of a forward.

    Args:
        order: physical layer of each step.
    """
    return tuple(Site(step, layer, branch) for step, layer in enumerate(order) for branch in ("attention", "mlp"))
