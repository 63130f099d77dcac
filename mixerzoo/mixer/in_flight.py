"""What a mixer's state takes per token, from its shapes.

The calls of a forward that return a state are made for one token and for two, without a decoder. They are made on the
CPU, with zeros: on the meta device PyTorch would load its compiler, for more than a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer.calls import AttentionCall, AttentionInputs, Context, State
from mixerzoo.mixer.shape import Site

if TYPE_CHECKING:
    from mixerzoo.mixer.base import Mixer

#: Bytes of a parameter above which all its elements are one (tables of embeddings).
_LARGE = 2**26
#: Identity of a stretch of memory → its bytes.
_Spans: TypeAlias = dict[object, int]

#: Of each mixer, by dtype: nothing that it depends on changes.
_known: WeakKeyDictionary[Mixer, dict[torch.dtype, int]] = WeakKeyDictionary()


def peak_bytes_per_token(mixer: Mixer, dtype: torch.dtype) -> int:
    """Peak bytes by which each token makes the state of a mixer larger, between two of its calls.

    A stretch of memory that several tensors share counts once. Of a tensor that the decoder gave, what a view shows
    counts; of any other, the whole.

    Args:
        mixer: on any device; nothing of it is read but its class, options and shape.
        dtype: of hidden states and parameters.

    Raises:
        MixerError: the mixer cannot be run so.
    """
    known = _known.setdefault(mixer, {})
    if dtype not in known:
        known[dtype] = _walked(mixer, dtype)
    return known[dtype]


def _walked(mixer: Mixer, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        twin = type(mixer)(mixer.config, mixer.shape).to(dtype).train(mixer.training)
    for module in twin.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_zeros(parameter), requires_grad=False))
    try:
        with torch.no_grad(), torch.device("cpu"):
            one, two = (_bytes_of_states(twin, dtype, num_tokens) for num_tokens in (1, 2))
    except (NotImplementedError, RuntimeError) as error:
        raise MixerError(
            f"mixer {mixer.name!r}: the bytes of its state cannot be derived, for it fails on zeros ({error}); let it "
            "define in_flight_bytes"
        ) from error
    return max(of_two - of_one for of_one, of_two in zip(one, two, strict=True))


def _zeros(parameter: Tensor) -> Tensor:
    """Zeros in place of a parameter on the meta device."""
    if parameter.nbytes > _LARGE:
        return torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    return torch.zeros(parameter.shape, dtype=parameter.dtype)


def _bytes_of_states(mixer: Mixer, dtype: torch.dtype, num_tokens: int) -> list[int]:
    walk = _Walk(mixer, dtype, num_tokens)
    return [walk.bytes(state) for state in walk.states()]


class _Walk:
    """A forward of a mixer alone.

    Args:
        mixer: on the CPU.
        dtype: of hidden states.
        num_tokens: T.
    """

    def __init__(self, mixer: Mixer, dtype: torch.dtype, num_tokens: int) -> None:
        self.mixer, self.dtype, self.num_tokens = mixer, dtype, num_tokens
        # By address; whatever is there stays alive, lest another gets its place.
        self.lent: dict[int, Tensor] = {}
        self.spans: dict[int, tuple[Tensor, _Spans]] = {}

    def states(self) -> Iterator[State]:
        """The state after each call that returns one."""
        mixer, shape = self.mixer, self.mixer.shape
        plan, hidden = mixer.plan(), (shape.hidden_size,)
        tail = plan.tail
        earlier = () if tail is None else tuple(self._given((), (tail.width,)) for _ in range(tail.length))
        state = mixer.start(self._given((), hidden), Context(self._given((), (), torch.int64), earlier))
        yield state
        for site in shape.sites():
            owns = plan.owns_k(site.step) and plan.owns_v(site.step)
            if site.branch == "attention" and owns and plan.hooks & {"mix_raw_kv", "mix_kv"}:
                stream = mixer.read(state, site)
                call = self._call(site, stream)
                if "mix_raw_kv" in plan.hooks:
                    state, _, v = mixer.mix_raw_kv(state, call)
                    yield state
                    # The head norm and RoPE make new keys.
                    call = call._replace(k=self._given((shape.num_kv_heads,), (shape.head_dim,)), v=v)
                if "mix_kv" in plan.hooks:
                    state, _, _ = mixer.mix_kv(state, call)
                    yield state
            state = mixer.write(state, site, self._given((), hidden))
            yield state

    def bytes(self, state: State) -> int:
        """What the tensors of a state keep in memory."""
        spans: _Spans = {}
        self._collect(state, spans)
        return sum(spans.values())

    def _call(self, site: Site, stream: Tensor | AttentionInputs) -> AttentionCall:
        """What the hooks of an attention site are told."""
        shape = self.mixer.shape
        normed = [self._given((), (shape.hidden_size,)) for _ in range(3)]
        return AttentionCall(
            site=site,
            stream=stream,
            x=AttentionInputs(*normed) if isinstance(stream, AttentionInputs) else normed[0],
            q=self._given((shape.num_heads,), (shape.head_dim,)),
            k=self._given((shape.num_kv_heads,), (shape.head_dim,)),
            v=self._given((shape.num_kv_heads,), (shape.v_head_dim,)),
            rotate=torch.empty_like,
        )

    def _given(self, before: tuple[int, ...], after: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """A tensor [B, …, T, …] of the decoder's."""
        tensor = torch.zeros(1, *before, self.num_tokens, *after, dtype=dtype or self.dtype)
        self.lent[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _collect(self, state: State, spans: _Spans) -> None:
        """Enter every tensor of a state."""
        if isinstance(state, Tensor):
            if id(state) not in self.spans:
                self.spans[id(state)] = (state, self._span(state))
            spans.update(self.spans[id(state)][1])
        elif state is not None:
            for part in state:
                self._collect(part, spans)

    def _span(self, tensor: Tensor) -> _Spans:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.lent:
            return {(storage.data_ptr(), tensor.storage_offset(), tensor.shape): tensor.nbytes}
        return {storage.data_ptr(): storage.nbytes()}
