"""What the author of a mixer reads: the mixer itself, and all that it is told and tells.

A mixer answers one question: how do a decoder's layers talk to each other? The decoder never writes
``x + f(x)``; the mixer owns every addition. It is called at each *site* of the forward, in this order::

    state = start(x, context)
    for each attention or MLP site:
        x = read(state, site)                        # what the sublayer's norm reads
        state, k, v = mix_raw_kv(state, site, k, v)  # attention sites only, before head norm and RoPE
        state, k, v = mix_kv(state, site, q, k, v)   # attention sites only, before the cache write
        entries = depth_kv(state, site, q, rotate)   # attention sites only, joined to the softmax
        state = write(state, site, y)                # absorb the sublayer's output
    x = finish(state)

A method that leaves the residual stream as it is and acts inside attention alone derives from
`AttentionMixer`, which brings the stream; such mixers can be composed with any other.

Letters in shapes: B batch, T tokens of this call, D hidden size, H query heads, G key/value heads,
d head_dim.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mixerzoo.errors import MixerError

#: Version of the interface between a mixer and the decoder; it changes when an old mixer would no longer work.
API_VERSION = 1

Branch: TypeAlias = Literal["attention", "mlp"]

#: A mixer's state: a tensor or a (named, possibly nested) tuple of tensors. It is a value: passed in,
#: returned, never mutated, never kept on a module.
State: TypeAlias = Any


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


class Context(NamedTuple):
    """What a forward knows besides the embeddings.

    Attributes:
        tokens: token ids, int64 [B, T], or None where the caller passed embeddings instead.
    """

    tokens: Tensor | None


class AttentionInputs(NamedTuple):
    """Separate inputs [B, T, D] for the query, key and value projections of one attention sublayer.

    The layer's input norm is applied to each.
    """

    q: Tensor
    k: Tensor
    v: Tensor


class DepthEntries(NamedTuple):
    """Keys and values of a token's own depth that join its softmax over the sequence.

    Attributes:
        k: [B, G, T, N, d], as the query is compared with them: after RoPE.
        v: [B, G, T, N, d].
    """

    k: Tensor
    v: Tensor


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
        return tuple(
            Site(step, layer, branch) for step, layer in enumerate(self.order) for branch in ("attention", "mlp")
        )


@dataclass(frozen=True)
class Plan:
    """What is fixed before the first token: the order of layers and who stores which keys and values.

    A step owns its key slot when ``k_slot[step] == step``; otherwise it reads the keys of that earlier
    owner. Likewise for values. The persistent bytes per token follow from the plan alone.

    Attributes:
        order: physical layer of each unrolled step.
        k_slot: the step whose keys each step attends to.
        v_slot: the step whose values each step attends to.
        windows: for each step, how many most recent tokens its own slots keep (the token itself
            included), or None for all of them. Entries of steps that own nothing are ignored.
        latent_sources: with multi-head latent attention, for each step the steps (itself last) whose values
            sum up to its own, with the weights of `Mixer.value_weights`, which the cache keeps; empty for a
            step whose values are its own latent's. Default: empty throughout.

    Raises:
        MixerError: the tuples differ in length, a slot points to a later step or to one that owns
            nothing, a step pairs keys and values of different windows, or a window is below 1.
    """

    order: tuple[int, ...]
    k_slot: tuple[int, ...]
    v_slot: tuple[int, ...]
    windows: tuple[int | None, ...]
    latent_sources: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        num_steps = len(self.order)
        lengths: dict[str, Sequence[Any]] = {"k_slot": self.k_slot, "v_slot": self.v_slot, "windows": self.windows}
        if self.latent_sources:
            lengths["latent_sources"] = self.latent_sources
        for name, values in lengths.items():
            if len(values) != num_steps:
                raise MixerError(f"plan: {name} has {len(values)} entries for {num_steps} steps")
        for name, slots in (("k_slot", self.k_slot), ("v_slot", self.v_slot)):
            for step, owner in enumerate(slots):
                if not 0 <= owner <= step:
                    raise MixerError(f"plan: step {step} reads {name} {owner}; it must be its own or an earlier one's")
                if slots[owner] != owner:
                    raise MixerError(f"plan: step {step} reads {name} {owner}, which step {owner} does not own")
        for step in range(num_steps):
            self._check_step(step)

    def _check_step(self, step: int) -> None:
        window, sources = self.windows[step], self.sources_of_latents(step)
        if window is not None and window < 1:
            raise MixerError(f"plan: the window of step {step} is {window}; it must be at least 1")
        if self.windows[self.k_slot[step]] != self.windows[self.v_slot[step]]:
            raise MixerError(f"plan: step {step} reads keys and values of different windows")
        if sources and (sources[-1] != step or list(sources) != sorted(set(sources)) or sources[0] < 0):
            raise MixerError(f"plan: latent_sources of step {step} must ascend and end with it, got {sources}")

    @classmethod
    def plain(cls, order: Sequence[int]) -> Plan:
        """Every step owns its keys and its values and keeps all tokens: a vanilla decoder."""
        steps = tuple(range(len(order)))
        return cls(order=tuple(order), k_slot=steps, v_slot=steps, windows=(None,) * len(steps))

    def owns_k(self, step: int) -> bool:
        """Whether ``step`` stores keys of its own."""
        return self.k_slot[step] == step

    def owns_v(self, step: int) -> bool:
        """Whether ``step`` stores values of its own."""
        return self.v_slot[step] == step

    def window(self, step: int) -> int | None:
        """How many most recent tokens ``step`` attends to, or None for all."""
        return self.windows[self.k_slot[step]]

    @property
    def last_owner(self) -> int:
        """The last step that stores keys or values."""
        return max(*self.k_slot, *self.v_slot)

    def sources_of_latents(self, step: int) -> tuple[int, ...]:
        """``latent_sources`` of a step."""
        return self.latent_sources[step] if self.latent_sources else ()

    def k_size(self, shape: DecoderShape) -> tuple[int, int]:
        """Heads and width of what a token keeps in a slot of keys."""
        return (1, shape.latent_dim) if shape.latent_dim else (shape.num_kv_heads, shape.head_dim)

    def v_size(self, shape: DecoderShape, step: int) -> tuple[int, int]:
        """Heads and width of what a token keeps in the slot of values of ``step``."""
        if shape.latent_dim:
            return shape.num_heads, len(self.sources_of_latents(step))
        return shape.num_kv_heads, shape.head_dim

    def elements(self, shape: DecoderShape, length: int = 1) -> int:
        """Numbers that ``length`` tokens keep in the cache: Σ over owned slots of min(length, window) · its size.

        The size of a slot is G · d; with latent attention, that of the latent and of the weights of its sources.
        """
        total = 0
        for step, window in enumerate(self.windows):
            per_token = math.prod(self.k_size(shape)) if self.owns_k(step) else 0
            if self.owns_v(step):
                per_token += math.prod(self.v_size(shape, step))
            total += per_token * (length if window is None else min(length, window))
        return total

    def bytes_per_token(self, shape: DecoderShape, dtype: torch.dtype) -> int:
        """Persistent bytes that one token adds while no window is full."""
        return self.elements(shape) * dtype.itemsize


class MixerConfig(BaseModel):
    """Base of a mixer's options. Unknown keys are errors; values are not coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Neutral:
    """A setting at which the decoder equals a plain residual one, with the mixer's parameters as initialised.

    Attributes:
        options: options that it needs; the others are free.
        num_steps: depth that it needs, or None for any.
        up_to_norm_eps: equal up to the epsilon of the norms; else equal bit for bit.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    up_to_norm_eps: bool = False


@dataclass(frozen=True)
class MixerCard:
    """What a mixer says about itself; `mixerzoo show`, the docs and the tests read it.

    Attributes:
        title: the method's name as its paper writes it.
        summary: one sentence.
        paper: where it is defined, e.g. ``"arXiv 2402.02622"``; empty for the baseline.
        equation: the update in plain characters, one line each.
        family: ``"residual"``, ``"depth-weighted"``, ``"streams"``, ``"attention"``, ``"cache"``,
            ``"schedule"`` or ``"composition"``.
        acts_on: where it acts, in words, e.g. ``"value, before the cache write"``.
        parameters: extra parameters as a formula in the letters of `mixerzoo.mixer.base`, e.g. ``"0"``.
        kv_bytes: persistent bytes per token as a formula.
        in_flight_bytes: bytes per token of the current forward as a formula.
        neutral: where the decoder equals a plain residual one, in words, or empty if nowhere.
        neutral_settings: the same for the tests.
        dialects: what each named dialect means, by option value.
        notes: what was chosen where the paper is silent.
    """

    title: str
    summary: str
    paper: str
    equation: str
    family: Literal["residual", "depth-weighted", "streams", "attention", "cache", "schedule", "composition"]
    acts_on: str
    parameters: str
    kv_bytes: str
    in_flight_bytes: str
    neutral: str = ""
    neutral_settings: tuple[Neutral, ...] = ()
    dialects: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class ParameterRole:
    """What training does with one of a mixer's parameters.

    Attributes:
        decay: whether weight decay pulls it to zero.
    """

    decay: bool = False


@dataclass(frozen=True)
class ReferenceReading:
    """How a mixer reads a checkpoint of another project.

    Attributes:
        options: the options of its ``Config``.
        names: tensor name in the file → parameter name within the mixer.
        unused: names of tensors that the layout contains but that no result depends on.
    """

    options: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()


class Mixer(nn.Module, ABC):
    """A cross-layer mixer: one module per decoder, owner of the mixing parameters of all depths.

    A subclass sets ``name``, ``Config`` and ``card`` and implements `start`, `read`, `write` and
    `finish`. Parameters may be created empty: `reset_parameters` gives every one of them its value.

    Args:
        config: an instance of the class's ``Config``.
        shape: the decoder to serve.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MixerConfig]] = MixerConfig
    card: ClassVar[MixerCard]
    #: The `API_VERSION` that the mixer was written for. A plugin sets the number itself, so that a later
    #: mixerzoo with another one refuses it in words instead of running it wrongly.
    api_version: ClassVar[int] = API_VERSION
    #: The method needs the keys and values that each layer computes itself, so it cannot run where a
    #: layer borrows them from another.
    needs_own_kv: bool = False
    #: `read` returns `AttentionInputs` at some site.
    separate_inputs: bool = False
    #: Keys of other projects' ``config.json`` that `read_reference` understands.
    reference_keys: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape

    # The decoder asks once, before the first token.

    def defines(self, hook: str) -> bool:
        """Whether the mixer has an optional hook of its own: ``"mix_raw_kv"``, ``"mix_kv"``, ``"depth_kv"``, …"""
        return getattr(type(self), hook) is not getattr(Mixer, hook)

    def plan(self) -> Plan:
        """Order of layers and cache slots. Default: the decoder's order, every step owns its slots."""
        return Plan.plain(self.shape.order)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        """Give every parameter its initial value, drawing from ``generator`` only.

        Args:
            generator: the seeded source of all randomness, on the CPU.
            std: standard deviation of the decoder's own initialisation.
        """
        if next(self.parameters(), None) is not None:
            raise MixerError(f"mixer {self.name!r} has parameters but does not define reset_parameters")

    def parameter_roles(self) -> Mapping[str, ParameterRole]:
        """What training does with the parameters, by their names in ``named_parameters()``.

        Those that are left out have the role ``ParameterRole()``: no weight decay. That is right for whatever
        weighs, gates or scales, and for whatever starts at an identity, from which decay would pull it. What decays
        are projections of the hidden state and embeddings, as the decoder's own do. Default: none.
        """
        return {}

    # The decoder asks at every forward.

    @abstractmethod
    def start(self, x: Tensor, context: Context) -> State:
        """State before the first layer, from the embeddings x [B, T, D]."""

    @abstractmethod
    def read(self, state: State, site: Site) -> Tensor | AttentionInputs:
        """What the sublayer's norm reads: [B, T, D], or at attention sites separate q, k and v inputs."""

    def mix_raw_kv(self, state: State, site: Site, k: Tensor, v: Tensor) -> tuple[State, Tensor, Tensor]:
        """Replace the projected keys and values of the new tokens, before head norm and RoPE.

        Args:
            state: the current state.
            site: an attention site whose step owns its keys and values.
            k: projected keys [B, G, T, d].
            v: projected values [B, G, T, d].

        Returns:
            The new state, and the k and v [B, G, T, d] that take their place.
        """
        return state, k, v

    def mix_kv(self, state: State, site: Site, q: Tensor, k: Tensor, v: Tensor) -> tuple[State, Tensor, Tensor]:
        """Replace the keys and values of the new tokens, after norm and RoPE and before the cache write.

        Args:
            state: the current state.
            site: an attention site whose step owns its keys and values.
            q: queries [B, H, T, d].
            k: keys [B, G, T, d].
            v: values [B, G, T, d].

        Returns:
            The new state and the k and v [B, G, T, d] that attention reads and the cache stores.
        """
        return state, k, v

    def depth_kv(self, state: State, site: Site, q: Tensor, rotate: Callable[[Tensor], Tensor]) -> DepthEntries | None:
        """Keys and values of the same token that join each query's softmax over the sequence.

        They are read once and stored nowhere. A decoder whose mixer defines this computes attention as the
        ``eager`` backend does, whichever is chosen: fused kernels do not take such entries.

        Args:
            state: the state after `mix_kv`.
            site: an attention site.
            q: queries [B, H, T, d].
            rotate: applies the tokens' RoPE to keys [B, G, T, d] that have none yet.

        Returns:
            The entries, or None for none.
        """
        return None

    @abstractmethod
    def write(self, state: State, site: Site, y: Tensor) -> State:
        """Absorb the sublayer's output y [B, T, D]."""

    @abstractmethod
    def finish(self, state: State) -> Tensor:
        """What the final norm and the head read: [B, T, D]."""

    def value_weights(self, state: State, site: Site) -> Tensor:
        """With latent attention: how the values that `mix_kv` returned sum up from those of earlier steps.

        A cache of latents cannot store mixed values. A mixer that defines this says in `plan` which steps a
        step's values come from, and here with which weights; the cache keeps these, and attention sums the
        latents. A mixer with `mix_kv` and without this is refused on latent attention.

        Args:
            state: the state after `mix_kv`.
            site: an attention site whose ``latent_sources`` are not empty.

        Returns:
            [B, H, T, number of sources], in their order.
        """
        raise NotImplementedError

    def last_token(self, state: State) -> State | None:
        """The state of the last token alone, or None where that cannot be had.

        Where only the last token's logits are asked for, the decoder skips all other tokens in the steps
        after the last one that stores keys or values.
        """
        return None

    # Accounting and explanation.

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        """Peak bytes per token that the state holds between two calls of the mixer.

        Default: one stream, D elements.

        Args:
            dtype: of the hidden states.
        """
        return self.shape.hidden_size * dtype.itemsize

    def flops_per_token(self) -> int:
        """Floating-point operations per token that a plain residual decoder would not do. Default 0."""
        return 0

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        """Whose outputs the mixer combines with weights of its own at ``site``, for pictures.

        None stands for the embedding. The running sum of a residual stream is not listed.
        """
        return ()

    # Checkpoints of other projects.

    @classmethod
    def read_reference(cls, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> ReferenceReading | None:
        """Recognise a checkpoint of the method's reference implementation.

        Args:
            config: the parsed ``config.json``.
            tensors: name → shape of every tensor in the file.

        Returns:
            How to read it, or None if this is not such a checkpoint.
        """
        return None


class AttentionState(NamedTuple):
    """State of an `AttentionMixer`.

    Attributes:
        x: the residual stream [B, T, D]. In a composition, what the other mixer lets this sublayer read, or
            None for a mixer that does not ask for it (``reads_stream``).
        memory: what the mixer remembers: a tensor or a (nested) tuple of tensors.
    """

    x: Any
    memory: State


class AttentionMixer(Mixer):
    """A mixer that acts inside attention and leaves the residual stream to itself.

    A subclass defines some of `mix_raw_kv`, `mix_kv`, `depth_kv` and `plan`. It keeps what it must remember
    in ``state.memory`` and returns ``state._replace(memory=…)``.
    """

    #: Whether its hooks look at ``state.x``.
    reads_stream: bool = False

    def remember(self, x: Tensor, context: Context) -> State:
        """The memory before the first layer, from the embeddings x [B, T, D]. Default: empty."""
        return ()

    def absorb(self, state: AttentionState, site: Site, y: Tensor) -> State:
        """The memory after a sublayer that read ``state.x`` gave y [B, T, D]. Default: unchanged."""
        return state.memory

    def start(self, x: Tensor, context: Context) -> AttentionState:
        return AttentionState(x, self.remember(x, context))

    def read(self, state: AttentionState, site: Site) -> Tensor:
        x: Tensor = state.x
        return x

    def write(self, state: AttentionState, site: Site, y: Tensor) -> AttentionState:
        return AttentionState(state.x + y, self.absorb(state, site, y))

    def finish(self, state: AttentionState) -> Tensor:
        x: Tensor = state.x
        return x

    def last_token(self, state: AttentionState) -> AttentionState | None:
        if state.memory != ():
            return None
        return state._replace(x=state.x[:, -1:])
