"""Operations over depth: what most mixers are made of, each a pure function in three forms that tests hold together.

The naive form is the equation. The fused form is one node with a backward of its own, which keeps the sources and the
weights and nothing per pair of source and reader. The kernel is Triton's, on CUDA. See `forms` for which of them runs.
"""

import torch

from mixerzoo.ops.depth_softmax import depth_softmax, depth_weights
from mixerzoo.ops.joint_attention import attention_with_depth
from mixerzoo.ops.normed_linear import normed_linear
from mixerzoo.ops.normed_product import normed_product
from mixerzoo.ops.shared import shared
from mixerzoo.ops.sinkhorn import sinkhorn
from mixerzoo.ops.source_softmax import source_scores, source_softmax, source_weights
from mixerzoo.ops.streams import stream_read, stream_write
from mixerzoo.ops.two_phase import join_source, reads_at_once, source_reads
from mixerzoo.ops.unit_rms import inverse_rms, unit_rms
from mixerzoo.ops.weighted_sum import weighted_sum, weighted_sums

#: Nodes that take time as linear layers and attention do.
PRODUCTS = (torch.ops.mixerzoo.normed_linear.default, torch.ops.mixerzoo.attention_with_depth.default)

__all__ = [
    "PRODUCTS",
    "attention_with_depth",
    "depth_softmax",
    "depth_weights",
    "inverse_rms",
    "join_source",
    "normed_linear",
    "normed_product",
    "reads_at_once",
    "shared",
    "sinkhorn",
    "source_reads",
    "source_scores",
    "source_softmax",
    "source_weights",
    "stream_read",
    "stream_write",
    "unit_rms",
    "weighted_sum",
    "weighted_sums",
]
