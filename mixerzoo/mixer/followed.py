"""What a mixer's calls depend on, seen in the graph that autograd keeps of a forward of the mixer alone."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mixerzoo.mixer.calls import State
from mixerzoo.mixer.shape import Site
from mixerzoo.mixer.walk import Walk, of_zeros

if TYPE_CHECKING:
    from mixerzoo.mixer.base import Mixer

#: Tokens; no size of a state is that by chance.
_TOKENS = 3


class Followed(NamedTuple):
    """What was seen.

    Attributes:
        reads: site → on whose outputs what it reads depends; None is the embedding.
        weighing: sites where parameters take part in what is read or written.
        looking_up: sites whose keys, values, input or output depend on a table with a row for each token.
        num_streams: n of a state that holds [B, T, n, D] after every sublayer, else 1.
    """

    reads: dict[Site, frozenset[Site | None]]
    weighing: frozenset[Site]
    looking_up: frozenset[Site]
    num_streams: int


def follow(mixer: Mixer) -> Followed | None:
    """Follow a forward of zeros.

    Args:
        mixer: on any device; nothing of it is read but its class, options and shape.

    Returns:
        What was seen, or None where the mixer cannot be run so, as one that fails on zeros.
    """
    twin = of_zeros(mixer, torch.float32, requires_grad=True)
    walk = _Traced(twin, torch.float32, _TOKENS)
    reads: dict[Site, frozenset[Site | None]] = {}
    weighing, looking_up, streams = set(), set(), []
    try:
        with torch.enable_grad(), torch.device("cpu"):
            for made in walk.made(walk.cut):
                tensors = [*_tensors(made.state, walk.parts), *made.given]
                used = {id(leaf) for leaf in _leaves(tensors)} & walk.parameters.keys()
                if made.hook == "write":
                    streams.append(_streams(made.state, mixer.shape.hidden_size))
                if made.site is None:
                    continue
                if made.hook == "read":
                    reads[made.site] = frozenset(walk.behind(made.given))
                if used and made.hook in ("read", "write"):
                    weighing.add(made.site)
                if any(_is_table(walk.parameters[each], mixer) for each in used):
                    looking_up.add(made.site)
    except (NotImplementedError, RuntimeError):
        return None
    alike = streams[0] if len(set(streams)) == 1 else 1
    return Followed(reads, frozenset(weighing), frozenset(looking_up), alike)


class _Traced(Walk):
    """A forward in which every tensor between two calls is a leaf, of which it is known what is behind it."""

    def __init__(self, mixer: Mixer, dtype: torch.dtype, num_tokens: int) -> None:
        super().__init__(mixer, dtype, num_tokens)
        self.parameters = {id(parameter): parameter for parameter in mixer.parameters()}
        #: Leaf → itself, so that it stays alive, and whose outputs are in it.
        self.known: dict[int, tuple[Tensor, frozenset[Site | None]]] = {}
        #: Parts of states, made of leaves alone: a state passes most of them on.
        self.parts: dict[int, State] = {}

    def output(self, site: Site | None) -> Tensor:
        return self._leaf(super().output(site), frozenset({site}))

    def behind(self, tensors: tuple[Tensor, ...]) -> Iterator[Site | None]:
        """Whose outputs are in tensors."""
        for leaf in _leaves(tensors):
            if id(leaf) in self.known:
                yield from self.known[id(leaf)][1]

    def cut(self, state: State) -> State:
        """The state with leaves in place of what was computed."""
        if state is None or (isinstance(state, Tensor) and not state.is_floating_point()):
            return state
        if isinstance(state, Tensor):
            return state if id(state) in self.known else self._leaf(state, frozenset(self.behind((state,))))
        if id(state) in self.parts:
            return state
        parts = [self.cut(part) for part in state]
        leaves: State = type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
        self.parts[id(leaves)] = leaves
        return leaves

    def _leaf(self, tensor: Tensor, sources: frozenset[Site | None]) -> Tensor:
        leaf = tensor.detach().requires_grad_()
        self.known[id(leaf)] = (leaf, sources)
        return leaf


def _leaves(tensors: Any) -> Iterator[Tensor]:
    """The leaves from which tensors were computed, themselves where they are leaves."""
    nodes, seen = [], set()
    for tensor in tensors:
        if tensor.grad_fn is None:
            yield tensor
        else:
            nodes.append(tensor.grad_fn)
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [inner for inner, _ in node.next_functions]


def _is_table(parameter: Tensor, mixer: Mixer) -> bool:
    rows = mixer.shape.vocab_size
    return parameter.ndim > 1 and parameter.size(0) == rows != mixer.shape.hidden_size


def _tensors(state: State, known: Container[int] = ()) -> Iterator[Tensor]:
    """Tensors of a state, but for those of parts whose identity is known."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None and id(state) not in known:
        for part in state:
            yield from _tensors(part, known)


def _streams(state: State, hidden_size: int) -> int:
    """n of the one tensor of a state, [B, T, n, D], else 1."""
    tensors = list(islice(_tensors(state), 2))
    sizes = tensors[0].shape if len(tensors) == 1 else ()
    return sizes[2] if len(sizes) == 4 and (sizes[1], sizes[3]) == (_TOKENS, hidden_size) else 1
