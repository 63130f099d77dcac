"""Mixers that do at every site the same, with parameters that the site has to itself.

Letters in shapes: B batch, T tokens of this call, D hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, final

from torch import Tensor

from mixerzoo.mixer.base import ConfigT_co, Mixer
from mixerzoo.mixer.calls import AttentionInputs, State
from mixerzoo.mixer.shape import Site


class Connection(Protocol):
    """What a mixer does at one site: a module, or a named tuple of tensors and modules, with the site's parameters.

    It does not know where it is. Its numbers and flags become part of compiled code, of which there is one for all
    connections that look alike.
    """

    def read(self, state: Any) -> Tensor | AttentionInputs:
        """As `Mixer.read`: what the sublayer's norm reads, [B, T, D]."""

    def write(self, state: Any, y: Tensor) -> State:
        """As `Mixer.write`: absorb the sublayer's output y [B, T, D]."""


class ConnectionMixer(Mixer[ConfigT_co]):
    """A mixer that does the same at every site, with parameters of the site's own.

    A subclass defines `connection` in place of `read` and `write`. Where training is compiled by the layer
    (``train.compile: layers``), its calls are compiled with the layers, in one graph for all sites whose connections
    and states look alike; those of any other mixer run between the compiled parts.

    Raises:
        TypeError: a subclass has a `read` or a `write`, which would not be called there.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = [name for name in ("read", "write") if getattr(cls, name) is not getattr(ConnectionMixer, name)]
        if own:
            raise TypeError(
                f"{cls.__name__} is a ConnectionMixer, whose connections read and write, and has a {own[0]} of its "
                "own; put it into the connection, or derive from Mixer"
            )

    @abstractmethod
    def connection(self, site: Site) -> Connection:
        """What is done at a site."""

    @final
    def read(self, state: State, site: Site) -> Tensor | AttentionInputs:
        return self.connection(site).read(state)

    @final
    def write(self, state: State, site: Site, y: Tensor) -> State:
        return self.connection(site).write(state, y)
