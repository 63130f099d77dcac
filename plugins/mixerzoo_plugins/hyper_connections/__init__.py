"""Hyper-Connections and what came of them, one file a paper.

Several residual streams run side by side. Each sublayer reads a weighted sum of them, and after it they are mixed
with each other and its output is added to each with a weight. The papers differ in how the weights are made.
"""

from __future__ import annotations

from mixerzoo import Mixer, hookimpl
from mixerzoo_plugins.hyper_connections.krom_hc import KromHC
from mixerzoo_plugins.hyper_connections.krom_hc import product_of_swaps as product_of_swaps
from mixerzoo_plugins.hyper_connections.mhc_lite import MAX_LITE_STREAMS as MAX_LITE_STREAMS
from mixerzoo_plugins.hyper_connections.mhc_lite import mean_of_permutations as mean_of_permutations
from mixerzoo_plugins.hyper_connections.mixer import HyperConnections


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [HyperConnections, KromHC]
