"""Mixers that do at every site the same, with parameters that the site has to itself.

Letters in shapes: B batch, T tokens of this call, D hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from torch import Tensor

from mixerzoo.mixer.base import ConfigT_co, Mixer
from mixerzoo.mixer.calls import AttentionInputs, State
from mixerzoo.mixer.shape import Site


class Connection(Protocol):
    """What a mixer does at one site, of which it does not know which one it is.

    It is a module, or a named tuple of tensors, modules, numbers, flags and text. Types, shapes, numbers and flags
    become part of compiled code, of which there is one for all connections that look alike; so a number that is another
    one at every site should be a tensor. Functions do not belong in it.
    """

    def read(self, state: Any) -> Tensor | AttentionInputs:
        """As `Mixer.read`: what the sublayer's norm reads, [B, T, D]."""

    def write(self, state: Any, y: Tensor) -> State:
        """As `Mixer.write`: absorb the sublayer's output y [B, T, D]."""


class ConnectionMixer(Mixer[ConfigT_co]):
    """A mixer that does the same at every site, with parameters of the site's own.

    A subclass defines `connection` in place of `read` and `write`. Where training is compiled by the layer
    (``train.compile: layers``), its calls are compiled with the layers, in one graph for all whose connections and
    states look alike. Otherwise they run between the compiled parts, as those of other mixers do: where the looks are
    more than a few, as with a state that grows, where the mixer has hooks, or has a `read` or `write` after all.
    """

    @abstractmethod
    def connection(self, site: Site) -> Connection:
        """What is done at a site. It is asked anew for every read and write, so it only looks up what it returns."""

    def read(self, state: State, site: Site) -> Tensor | AttentionInputs:
        return self.connection(site).read(state)

    def write(self, state: State, site: Site, y: Tensor) -> State:
        return self.connection(site).write(state, y)
