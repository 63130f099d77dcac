"""The mixer: what its author writes.

A mixer answers one question: how do a decoder's layers talk to each other? The decoder never writes
``x + f(x)``; the mixer owns every addition. It is called at each *site* of the forward, in this order::

    state = start(x, context)
    for each attention or MLP site:
        x = read(state, site)                  # what the sublayer's norm reads
        state, k, v = mix_raw_kv(state, call)  # attention sites only, before head norm and RoPE
        state, k, v = mix_kv(state, call)      # attention sites only, before the cache write
        k, v = fuse_kv(site, keys, values)     # attention sites only, of the slots that the step reads
        entries = depth_kv(state, call)        # attention sites only, joined to the softmax
        state = write(state, site, y)          # absorb the sublayer's output
    x = finish(state)

A method that leaves the residual stream as it is and acts inside attention alone derives from
`AttentionMixer`, which brings the stream; such mixers can be composed with any other.

Letters in shapes: B batch, T tokens of this call, S tokens that attention sees, D hidden size, H query heads,
G key/value heads, d head_dim, N sources.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, get_args

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from mixerzoo.errors import MixerError
from mixerzoo.mixer.calls import AttentionCall, AttentionInputs, Context, DepthEntries, MixingWeights, State
from mixerzoo.mixer.card import MixerCard, MixerConfig, ParameterRole, ReferenceReading
from mixerzoo.mixer.in_flight import peak_bytes_per_token
from mixerzoo.mixer.plan import HOOKS, Plan
from mixerzoo.mixer.shape import DecoderShape, Site

#: Version of the interface between a mixer and the decoder; it changes when an old mixer would no longer work.
API_VERSION = 2

#: The class of a mixer's options.
ConfigT_co = TypeVar("ConfigT_co", bound=MixerConfig, covariant=True, default=MixerConfig)


class Mixer(nn.Module, ABC, Generic[ConfigT_co]):
    """A cross-layer mixer: one module per decoder, owner of the mixing parameters of all depths.

    ``class Own(Mixer[OwnConfig])`` makes ``OwnConfig`` its ``Config``, and gives ``self.config`` that type.

    A subclass sets ``name`` and ``card`` and implements `start`, `read`, `write` and
    `finish`. Parameters may be created empty: `reset_parameters` gives every one of them its value.

    Args:
        config: an instance of the class's ``Config``.
        shape: the decoder to serve.
    """

    name: ClassVar[str]
    Config: ClassVar[type[MixerConfig]] = MixerConfig
    #: Of the class; an instance has its own where its options decide what no formula of the class says.
    card: MixerCard
    #: The `API_VERSION` that the mixer was written for. A plugin sets the number itself, so that a later
    #: mixerzoo with another one refuses it in words instead of running it wrongly.
    api_version: ClassVar[int] = API_VERSION
    #: Keys of other projects' ``config.json`` that `read_reference` understands.
    reference_keys: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in vars(cls).get("__orig_bases__", ()):
            options = next(iter(get_args(base)), None)
            if "Config" not in vars(cls) and isinstance(options, type) and issubclass(options, MixerConfig):
                cls.Config = options

    def __init__(self, config: ConfigT_co, shape: DecoderShape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape

    # The decoder asks once, before the first token.

    def plan(self) -> Plan:
        """Order of layers, cache slots, and what the mixer takes part in.

        Default: the decoder's order, every step owns its slots, and each hook that the class overrides is called.
        Change it with ``dataclasses.replace(super().plan(), …)``.
        """
        return Plan.plain(self.shape.order, (hook for hook in HOOKS if _overrides(type(self), Mixer, hook)))

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

    def mix_raw_kv(self, state: State, call: AttentionCall) -> tuple[State, Tensor, Tensor]:
        """Replace the projected keys and values of the new tokens, before head norm and RoPE.

        Args:
            state: the current state.
            call: of a step that owns its keys and values.

        Returns:
            The new state, and the k and v [B, G, T, d] that take their place.
        """
        return state, call.k, call.v

    def mix_kv(self, state: State, call: AttentionCall) -> tuple[State, Tensor, Tensor]:
        """Replace the keys and values of the new tokens, after norm and RoPE and before the cache write.

        Args:
            state: the current state.
            call: of a step that owns its keys and values.

        Returns:
            The new state and the k and v [B, G, T, d] that attention reads and the cache stores.
        """
        return state, call.k, call.v

    def fuse_kv(self, site: Site, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One set of keys and one of values from those of all slots that a step reads.

        It sees the whole sequence, past and new, so it must treat every token alike and by itself.

        Args:
            site: an attention site whose step reads several slots of keys or of values.
            keys: [B, G, S, d] each, after RoPE, in the order of ``Plan.k_reads``.
            values: [B, G, S, d] each, in the order of ``Plan.v_reads``.

        Returns:
            The k and v [B, G, S, d] that attention reads; nothing stores them.
        """
        raise NotImplementedError

    def depth_kv(self, state: State, call: AttentionCall) -> DepthEntries | None:
        """Keys and values of the same token that join each query's softmax over the sequence.

        They are read once and stored nowhere. A decoder whose mixer has this hook computes attention as PyTorch does
        (``sdpa``, or ``eager`` where that is chosen): other backends do not take such entries.

        Args:
            state: the state after `mix_kv`.
            call: of any step.

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

        A cache of latents cannot store mixed values. A mixer with this hook says in ``Plan.v_reads`` which slots a
        step's values come from, and here with which weights; the cache keeps these, and attention sums the
        latents. A mixer with `mix_kv` and without this is refused on latent attention.

        Args:
            state: the state after `mix_kv`.
            site: an attention site whose step reads several slots of values.

        Returns:
            [B, H, T, number of sources], in their order.
        """
        raise NotImplementedError

    def tail(self, x: Tensor, context: Context) -> Tensor:
        """The vectors [B, T, width] of the new tokens of which the cache keeps the last few, for the tokens after them.

        Called before `start` where the plan has a tail, with ``context.earlier`` still empty. Default: the embeddings.

        Args:
            x: embeddings [B, T, D].
            context: what else the forward knows.
        """
        return x

    def last_token(self, state: State) -> State | None:
        """The state of the last token alone, or None where that cannot be had.

        Where only the last token's logits are asked for, the decoder skips all other tokens in the steps
        after the last one that stores keys or values. Default: the last row of every tensor of the state, in each of
        which tokens are the second dimension, [B, T, …].
        """
        return _last_of(state)

    # Accounting and explanation.

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        """Peak bytes per token that the state holds between two calls of the mixer.

        Default: derived from the shapes of the state, by a forward of the mixer alone, of zeros. A method whose shapes
        depend on values counts them itself.

        Args:
            dtype: of the hidden states.

        Raises:
            MixerError: the mixer fails on zeros.
        """
        return peak_bytes_per_token(self, dtype)

    def mixing_weights(self, state: State, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        """How the sources of a site are weighed, for inspection; never called in a forward that is not inspected.

        Args:
            state: as the hook that mixes there gets it: `read`, or at attention sites with ``call`` `mix_kv`.
            site: where.
            call: as `mix_kv` gets it, given to mixers that act there alone; None asks for what `read` mixes.

        Returns:
            The weights and their sources (of separate inputs the query's), or None where nothing is weighed.
            Default: None.
        """
        return None

    def write_weights(self, state: State, site: Site, y: Tensor) -> MixingWeights | None:
        """The same of `write`, whose arguments these are: how what is read next comes about. Default: None."""
        return None

    def final_weights(self, state: State) -> MixingWeights | None:
        """The same of `finish`, whose argument this is: how what the head reads comes about. Default: None."""
        return None

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
        x: the residual stream [B, T, D]. In a composition, where another mixer has it, None, but for `absorb` what
            that mixer let the sublayer read, if asked for (``reads_stream``).
        memory: what the mixer remembers: a tensor or a (nested) tuple of tensors.
    """

    x: Any
    memory: State


class AttentionMixer(Mixer[ConfigT_co]):
    """A mixer that acts inside attention and leaves the residual stream to itself.

    A subclass defines some of `mix_raw_kv`, `mix_kv`, `fuse_kv`, `depth_kv` and `plan`. It keeps what it must remember
    in ``state.memory`` and returns ``state._replace(memory=…)``.
    """

    #: Whether `absorb` looks at ``state.x``.
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

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        """As `Mixer.in_flight_bytes`; one stream where the class has nothing that could fill its memory."""
        remembers = ("remember", "absorb", "mix_raw_kv", "mix_kv")
        if any(_overrides(type(self), AttentionMixer, name) for name in remembers):
            return super().in_flight_bytes(dtype)
        return self.shape.hidden_size * dtype.itemsize

    def last_token(self, state: AttentionState) -> AttentionState | None:
        """As `Mixer.last_token`; in the memory, tensors of four dimensions are heads, [B, any, T, width]."""
        return AttentionState(_last_of(state.x), _last_of(state.memory, heads=True))


def _last_of(state: State, *, heads: bool = False) -> State:
    """The last token of every tensor of a state: [B, T, …], with ``heads`` in four dimensions [B, any, T, width]."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.narrow(2 if heads and state.ndim == 4 else 1, -1, 1)
    parts = [_last_of(part, heads=heads) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def _overrides(mixer: type[Mixer], base: type, method: str) -> bool:
    """Whether a mixer has a method other than its base's."""
    own: object = getattr(mixer, method)
    return own is not getattr(base, method)
