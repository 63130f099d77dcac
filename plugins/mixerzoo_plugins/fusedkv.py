"""FusedKV (arXiv 2512.03870): the upper half attends to learned sums of two lower layers' keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mixerzoo import AttentionMixer, DecoderShape, Mixer, MixerCard, MixerConfig, Neutral, Plan, Site, hookimpl


class FusedKV(AttentionMixer):
    """Steps above the middle read two slots of keys and two of values, and store nothing."""

    name = "fusedkv"
    card = MixerCard(
        title="FusedKV",
        summary="The upper half attends with per-channel sums of the bottom and the middle layer's keys and values.",
        paper="arXiv 2512.03870",
        equation=(
            "K^l = a_l ⊙ K^0 + b_l ⊙ K^m,  V^l = c_l ⊙ V^0 + d_l ⊙ V^m  for l > m,  m = ⌈L/2⌉ − 1\n"
            "a, b equal on the two channels of a rotary pair, on keys after RoPE"
        ),
        family="cache",
        acts_on="key and value slots of the cache, read two at a time",
        parameters="3·G·d·(L − 1 − m), m = ⌈L/2⌉ − 1 (0 with at most two layers)",
        kv_bytes="2·⌈L/2⌉·G·d·e",
        in_flight_bytes="D·e",
        neutral="one layer, bit for bit",
        neutral_settings=(Neutral(num_steps=1),),
        notes=(
            "Starts as FusedKV-Lite, which is our choice: a = 0, b = 1, c = 1, d = 0. The sums are made anew over the "
            "whole sequence at every call; nothing is stored of them. An odd depth gives the lower half the layer "
            "more. In a decoder of at most two layers the bottom is the middle, and there is nothing to fuse. In a "
            "looped decoder the halves count unrolled steps. A mixer that needs each layer's own keys and values "
            "cannot be joined with it."
        ),
    )

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        #: m, the last step with keys and values of its own.
        self.middle = (shape.num_steps - 1) // 2
        fusing = range(self.middle + 1, shape.num_steps) if self.middle else ()
        heads, half = shape.num_kv_heads, shape.head_dim // 2
        #: step → (a, b) [2, G, d/2], one number for each rotary pair.
        self.key_sums = nn.ParameterDict({str(s): nn.Parameter(torch.empty(2, heads, half)) for s in fusing})
        #: step → (c, d) [2, G, d].
        self.value_sums = nn.ParameterDict(
            {str(s): nn.Parameter(torch.empty(2, heads, shape.head_dim)) for s in fusing}
        )

    def plan(self) -> Plan:
        plan, steps, middle = super().plan(), range(self.shape.num_steps), self.middle
        writes = tuple(step if step <= middle else None for step in steps)
        both = (0, middle) if middle else (0,)
        reads = tuple((step,) if step <= middle else both for step in steps)
        hooks = plan.hooks if len(self.key_sums) else plan.hooks - {"fuse_kv"}
        return replace(plan, k_writes=writes, v_writes=writes, k_reads=reads, v_reads=reads, hooks=hooks)

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for keys, values in zip(self.key_sums.values(), self.value_sums.values(), strict=True):
            for weights, one in ((keys, 1), (values, 0)):
                nn.init.zeros_(weights)
                nn.init.ones_(weights[one])

    def fuse_kv(self, site: Site, keys: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        pairs = self.key_sums[str(site.step)]
        weights = torch.cat([pairs, pairs], dim=-1)
        return _sum(weights, keys), _sum(self.value_sums[str(site.step)], values)

    def flops_per_token(self) -> int:
        return 6 * self.shape.num_kv_heads * self.shape.head_dim * len(self.key_sums)

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "mlp" or site.step <= self.middle or not len(self.key_sums):
            return ()
        return self.shape.sites()[0], self.shape.sites()[2 * self.middle]


def _sum(weights: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Σ_i weights_i ⊙ parts_i of parts [B, G, S, d], with weights [2, G, d]."""
    first, second = weights.unsqueeze(2).to(parts[0].dtype)
    return torch.addcmul(first * parts[0], second, parts[1])


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [FusedKV]
