"""What a step is told, and what came before it.

Letters in shapes: B batch, T tokens of this call, S tokens that attention sees (past and new), H query heads,
G key/value heads, d head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from mixerzoo.mixer import AttentionCall, AttentionInputs, DepthEntries, Mixer, Plan, Site, State
from mixerzoo.model.rope import Rotary


class HeadNorms(Protocol):
    """Head norm and RoPE, of heads [B, H or G, T, d]."""

    def query(self, q: Tensor, rotary: Rotary) -> Tensor:
        """Queries from projected ones."""

    def key(self, k: Tensor, rotary: Rotary) -> Tensor:
        """Keys from projected ones."""


class KeysAndValues(NamedTuple):
    """What the slots hold that a step wrote: [B, G, S, d] each, None where it wrote none.

    With latent attention, latents [B, 1, S, ·] and the weights of their sums.
    """

    k: Tensor | None
    v: Tensor | None


class Reads(NamedTuple):
    """What the slots hold that a step reads and earlier ones wrote.

    Attributes:
        k: in the order of ``Plan.k_reads``; None for the slot that the step writes itself.
        v: in the order of ``Plan.v_reads``, likewise.
        latents: with latent attention, of a step whose values sum up from several slots: for each but its own the
            attention module of the step that wrote it, and the latents there.
    """

    k: tuple[Tensor | None, ...]
    v: tuple[Tensor | None, ...]
    latents: tuple[tuple[nn.Module, Tensor], ...] = ()


class Past(ABC):
    """What came before, and attention over it: the one thing in which decoders differ."""

    #: Whether what is stored is there at the next call.
    stores: bool

    @abstractmethod
    def store(self, slot: int | None, k: Tensor | None, v: Tensor | None) -> KeysAndValues:
        """Put the new tokens' keys and values [B, G, T, d] into a slot; all that it holds comes back."""

    @abstractmethod
    def attend(self, step: int, q: Tensor, k: Tensor, v: Tensor, scale: float, depth: DepthEntries | None) -> Tensor:
        """Attention [B, H, T, ·] of a step's queries over the sequence, and over entries of its depth."""

    @abstractmethod
    def weigh(self, step: int, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """Its weights [B, H, T, S]."""


PastT_co = TypeVar("PastT_co", bound=Past, covariant=True)


class Run(NamedTuple, Generic[PastT_co]):
    """What all steps of one forward share."""

    mixer: Mixer
    plan: Plan
    rotary: Rotary
    past: PastT_co


class Turn(NamedTuple, Generic[PastT_co]):
    """What an attention sublayer is told of the step that runs it.

    Attributes:
        site: where.
        state: of the mixer.
        stream: what the mixer let it read, before the input norm.
        norm: that attention's inputs still lack; None: they are normed.
        reads: what earlier steps wrote.
        run: what all steps share.
    """

    site: Site
    state: State
    stream: Tensor | AttentionInputs
    norm: nn.Module | None
    reads: Reads
    run: Run[PastT_co]

    @property
    def owns_k(self) -> bool:
        """Whether the step has keys of its own."""
        return self.run.plan.owns_k(self.site.step)

    @property
    def owns_v(self) -> bool:
        """Whether the step has values of its own."""
        return self.run.plan.owns_v(self.site.step)

    def owned(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What of these the step has of its own; it borrows the others."""
        return q, k if self.owns_k else None, v if self.owns_v else None

    def call(self, x: Tensor | AttentionInputs, q: Tensor, k: Tensor | None, v: Tensor | None) -> AttentionCall:
        """What a hook is told, with normed inputs x."""
        return AttentionCall(self.site, self.stream, x, q, k, v, self.run.rotary.rotate)

    def mix(
        self, norms: HeadNorms, x: Tensor | AttentionInputs, q: Tensor, k: Tensor | None, v: Tensor | None
    ) -> tuple[State, Tensor, Tensor | None, Tensor | None, DepthEntries | None]:
        """Projected heads made into what is attended to and stored: head norms, RoPE, the mixer's hooks.

        Args:
            norms: of the heads.
            x: normed inputs; where there is no hook they may lack their norm.
            q: projected queries [B, H, T, d].
            k: projected keys [B, G, T, d], or None where the step has none.
            v: projected values [B, G, T, d], likewise.

        Returns:
            The mixer's state, q, k, v, and the entries that join the softmax.
        """
        mixer, hooks, rotary, state = self.run.mixer, self.run.plan.hooks, self.run.rotary, self.state
        q = norms.query(q, rotary)
        if k is not None and v is not None and "mix_raw_kv" in hooks:
            state, k, v = mixer.mix_raw_kv(state, self.call(x, q, k, v))
        if k is not None:
            k = norms.key(k, rotary)
        if k is not None and v is not None and "mix_kv" in hooks:
            state, k, v = mixer.mix_kv(state, self.call(x, q, k, v))
        depth = mixer.depth_kv(state, self.call(x, q, k, v)) if "depth_kv" in hooks else None
        return state, q, k, v, depth

    def store(self, k: Tensor | None, v: Tensor | None) -> KeysAndValues:
        """Put what the step has of its own into its slots; all that these hold comes back."""
        plan, step = self.run.plan, self.site.step
        if k is None and v is None:
            return KeysAndValues(None, None)
        k_slot, v_slot = plan.k_writes[step], plan.v_writes[step]
        if None in (k_slot, v_slot) or k_slot == v_slot:
            return self.run.past.store(v_slot if k_slot is None else k_slot, k, v)
        return KeysAndValues(self.run.past.store(k_slot, k, None).k, self.run.past.store(v_slot, None, v).v)

    def attended(self, own: KeysAndValues, dtype: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, S, d] of all slots that the step reads, fused where they are several."""
        keys = [(own.k if given is None else given) for given in self.reads.k]
        values = [(own.v if given is None else given) for given in self.reads.v]
        k, v = ([x.to(dtype) for x in held if x is not None] for held in (keys, values))
        if len(k) == 1 and len(v) == 1:
            return k[0], v[0]
        return self.run.mixer.fuse_kv(self.site, k, v)
