"""Several residual streams through the depth of a decoder, whatever their connections are made of.

Letters in shapes: B batch, T tokens, D hidden size, n streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    ConnectionMixer,
    Context,
    DecoderShape,
    MixerConfig,
    MixingWeights,
    ParameterRole,
    Site,
    ops,
)
from mixerzoo_plugins.hyper_connections.connection import Connection
from mixerzoo_plugins.hyper_connections.constrained import ConstrainedConnection

ConfigT = TypeVar("ConfigT", bound=MixerConfig)


class StreamMixer(ConnectionMixer[ConfigT]):
    """Each sublayer reads a weighted sum of n streams, which are then mixed and get its output.

    The state is the streams [B, T, n, D].

    Args:
        config: the options.
        shape: the decoder to serve.
        connections: of every unrolled sublayer.
        num_streams: n.
        alpha_init: initial value of the scales of what depends on the token.
        has_head: whether the head reads a sum of the streams with learned weights, and not their plain one.
    """

    def __init__(
        self,
        config: ConfigT,
        shape: DecoderShape,
        connections: Sequence[Connection],
        num_streams: int,
        alpha_init: float,
        has_head: bool,
    ) -> None:
        super().__init__(config, shape)
        self.num_streams, self.alpha_init, self.has_head = num_streams, alpha_init, has_head
        self.connections = nn.ModuleList(connections)
        if has_head:
            self.head = nn.Parameter(torch.empty(num_streams))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for number, connection in enumerate(self.connections):
            assert isinstance(connection, Connection)
            connection.reset(number, self.alpha_init, generator, std)
        if self.has_head:
            nn.init.zeros_(self.head)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        # The papers exempt the static part, which starts at an identity; what looks at the streams is a projection.
        return {name: ParameterRole(decay=True) for name, _ in self.named_parameters() if name.endswith("projection")}

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x.unsqueeze(-2).expand(*x.shape[:-1], self.num_streams, -1)

    def connection(self, site: Site) -> Connection:
        connection = self.connections[site.number]
        assert isinstance(connection, Connection)
        return connection

    def finish(self, state: Tensor) -> Tensor:
        return ops.stream_read(state, self._head_weights(state)) if self.has_head else state.sum(-2)

    def mixing_weights(self, state: Tensor, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        return MixingWeights(self.connection(site).read_weights(state), state.unbind(-2))

    def final_weights(self, state: Tensor) -> MixingWeights | None:
        if not self.has_head:
            return None
        return MixingWeights(self._head_weights(state), state.unbind(-2))

    def flops_per_token(self) -> int:
        streams = self.num_streams * self.shape.hidden_size
        flops = 2 * streams if self.has_head else streams
        for connection in self.connections:
            assert isinstance(connection, Connection)
            mixes = not isinstance(connection, ConstrainedConnection) or connection.mixes
            # Read, mix, and add the output, where a plain stream has one addition.
            flops += 4 * streams + 2 * self.num_streams * streams * bool(mixes) - self.shape.hidden_size
            flops += connection.flops()
        return flops

    def _head_weights(self, state: Tensor) -> Tensor:
        return self.head.to(torch.promote_types(state.dtype, torch.float32)).softmax(-1)
