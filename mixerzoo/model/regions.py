"""Training compiled by the layer: what repeats is compiled once, however many layers there are.

A graph is served to every layer whose arguments look alike, for parameters are its inputs; a step's number is not, so
compiled code is told the number of the first step that is like it, and given a mixer's connections of the step in
place of the mixer. A mixer that asks where it is, or whose state grows, runs between the compiled parts.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer import AttentionInputs, Connection, ConnectionMixer, Context, Mixer, Plan, Site, State
from mixerzoo.model.attention import Attention
from mixerzoo.model.compiled import compiled
from mixerzoo.model.layer import Layer
from mixerzoo.model.past import HeadNorms, KeysAndValues, Past, Reads, Run, Turn
from mixerzoo.model.rope import Rotary

#: Forms that the state of a mixer may have between layers, each of which takes a graph.
_MOST_FORMS = 4

#: What of a training step is compiled.
Compiled: TypeAlias = Literal["layers", "whole", "off"]


class Regions:
    """The compiled parts of the steps of one decoder.

    Args:
        plan: of its steps.
        mixer: that joins them.

    Raises:
        MixerError: tokens go one by one, so that nothing could be compiled, or the layers differ too much.
    """

    def __init__(self, plan: Plan, mixer: Mixer) -> None:
        if plan.is_sequential:
            raise MixerError(
                f"mixer {mixer.name!r} lets steps write one slot in turn, so that tokens go one by one through a "
                "cache, where layers are not compiled; set train.compile to off"
            )
        self.plan = plan
        self.first = _first_alike(plan)
        kinds, most = len(set(self.first)), torch._dynamo.config.recompile_limit
        if kinds > most:
            raise MixerError(
                f"the layers differ in {kinds} ways, in what they read, write and see, and at most {most} are compiled "
                "each by itself; set train.compile to whole, or off"
            )
        #: Whether the mixer's own calls are compiled with the layers.
        self.takes_mixer = not plan.hooks and treats_sites_alike(mixer)
        self._layer = compiled(_layer, dynamic=False)
        self._attention = compiled(_attention, dynamic=False)
        self._heads = compiled(_heads, dynamic=False)
        self._feed = compiled(_feed, dynamic=False)

    def step(
        self, layer: nn.Module, state: State, step: int, reads: Reads, run: Run[Past]
    ) -> tuple[State, KeysAndValues]:
        """As `Layer.forward`."""
        assert isinstance(layer, Layer)
        first = self.first[step]
        mixer, site = run.mixer, Site(step, self.plan.order[step], "attention")
        if self.takes_mixer:
            if isinstance(mixer, ConnectionMixer):
                here: Any = _Here(mixer.connection(site), mixer.connection(site._replace(branch="mlp")))
                run = run._replace(mixer=here)
            found: tuple[State, KeysAndValues] = self._layer(layer, state, first, reads, run)
            return found
        stream = mixer.read(state, site)
        turn = Turn(site, state, stream, reads, run)
        if not self.plan.hooks:
            like = turn._replace(site=site._replace(step=first, layer=self.plan.order[first]), state=None)
            y, written = self._attention(layer, stream, like)
        elif isinstance(layer.self_attn, Attention):
            state, y, written = self._hooked(layer, layer.self_attn, stream, turn)
        else:
            state, y, written, *_ = layer.self_attn(layer.normed(stream), turn)
        state = mixer.write(state, site, y)
        site = site._replace(branch="mlp")
        return mixer.write(state, site, self._feed(layer, mixer.read(state, site))), written

    def _hooked(
        self, layer: Layer, attention: Attention, stream: Tensor | AttentionInputs, turn: Turn[Past]
    ) -> tuple[State, Tensor, KeysAndValues]:
        """Attention with a mixer that acts within it."""
        raw = "mix_raw_kv" in self.plan.hooks
        x, q, k, v = self._heads(layer, stream, turn.run.rotary, turn.owns_k, turn.owns_v, not raw)
        return attention.attended(x, q, k, v, turn, attention if raw else _Done())


class _Here(NamedTuple):
    """A mixer's part of one step, in place of the mixer, whose parameters of other steps would be part of the graph."""

    attention: Connection
    mlp: Connection

    def read(self, state: State, site: Site) -> Tensor | AttentionInputs:
        return self._at(site).read(state)

    def write(self, state: State, site: Site, y: Tensor) -> State:
        return self._at(site).write(state, y)

    def _at(self, site: Site) -> Connection:
        return self.attention if site.branch == "attention" else self.mlp


def _layer(layer: Layer, state: State, step: int, reads: Reads, run: Run[Past]) -> tuple[State, KeysAndValues]:
    return layer.forward(state, step, reads, run)


def _attention(layer: Layer, stream: Tensor | AttentionInputs, turn: Turn[Past]) -> tuple[Tensor, KeysAndValues]:
    _, y, written, *_ = layer.self_attn(layer.normed(stream), turn)
    return y, written


def _heads(
    layer: Layer, stream: Tensor | AttentionInputs, rotary: Rotary, owns_k: bool, owns_v: bool, norms: bool
) -> tuple[Tensor | AttentionInputs, Tensor, Tensor | None, Tensor | None]:
    """Normed inputs, and their heads before or after head norm and RoPE."""
    attention, x = layer.self_attn, layer.normed(stream)
    assert isinstance(attention, Attention)
    q, k, v = attention.project(x, owns_k, owns_v)
    if norms:
        q, k = attention.query(q, rotary), None if k is None else attention.key(k, rotary)
    return x, q, k, v


def _feed(layer: Layer, stream: Tensor) -> Tensor:
    return layer.feed(stream)


class _Done(HeadNorms):
    """Head norm and RoPE of heads that have them already."""

    def query(self, q: Tensor, rotary: Rotary) -> Tensor:
        return q

    def key(self, k: Tensor, rotary: Rotary) -> Tensor:
        return k


def _first_alike(plan: Plan) -> tuple[int, ...]:
    """For each step the first one that reads, writes and sees the same, but for which slots they are."""
    seen: dict[object, int] = {}
    found = []
    for step in range(len(plan.order)):
        own = (plan.owns_k(step), plan.owns_v(step), plan.window(step))
        writes_one = plan.k_writes[step] == plan.v_writes[step]
        reads = tuple(
            tuple(slot == written for slot in slots)
            for slots, written in (
                (plan.k_reads[step], plan.k_writes[step]),
                (plan.v_reads[step], plan.v_writes[step]),
            )
        )
        found.append(seen.setdefault((own, writes_one, reads), step))
    return tuple(found)


class _Asked(Exception):
    """A mixer asked where it is."""


class _Anywhere:
    """A site that does not say where it is."""

    def __getattr__(self, name: str) -> Any:
        raise _Asked

    def __getitem__(self, item: object) -> Any:
        raise _Asked

    def __iter__(self) -> Any:
        raise _Asked

    def __eq__(self, other: object) -> bool:
        raise _Asked

    def __hash__(self) -> int:
        raise _Asked


def treats_sites_alike(mixer: Mixer) -> bool:
    """Whether `read` and `write` do the same at every site but for parameters, on states of few forms.

    Args:
        mixer: is called for one token, with zeros.
    """
    like = next(mixer.parameters(), torch.zeros(()))
    x, tail = like.new_zeros(1, 1, mixer.shape.hidden_size), mixer.plan().tail
    earlier = () if tail is None else (like.new_zeros(1, 1, tail.width),) * tail.length
    with torch.no_grad():
        state = mixer.start(x, Context(torch.zeros(1, 1, dtype=torch.long, device=x.device), earlier))
        if isinstance(mixer, ConnectionMixer):
            forms = {str(_form(state))}
            for site in mixer.shape.sites():
                mixer.read(state, site)
                state = mixer.write(state, site, x)
                if site.branch == "mlp":
                    forms.add(str(_form(state)))
            return len(forms) <= _MOST_FORMS
        nowhere: Any = _Anywhere()
        try:
            mixer.read(state, nowhere)
            after = mixer.write(state, nowhere, x)
        except _Asked:
            return False
    return _form(state) == _form(after)


def _form(state: State) -> object:
    if isinstance(state, Tensor):
        return state.shape, state.dtype
    return (type(state), tuple(map(_form, state))) if isinstance(state, tuple | list) else state
