"""LIMe, layer-integrated memory (arXiv 2502.09245): keys and values are mixed from those of all layers and heads
so far, before RoPE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionMixer,
    AttentionState,
    DecoderShape,
    Mixer,
    MixerCard,
    MixerConfig,
    Neutral,
    Plan,
    Site,
    hookimpl,
)


class Config(MixerConfig):
    """Options of LIMe."""

    initial: Literal["identity", "uniform"] = Field(
        "identity",
        description="Weights of earlier layers start at zero (a plain decoder) or uniform in ±√(3/n), n inputs.",
    )


class Lime(AttentionMixer[Config]):
    """A static matrix per layer routes the projected keys and values of all layers and heads into its own heads.

    The memory is the raw keys and values of the layers so far, one [B, G, T, 2d] each.
    """

    name = "lime"
    card = MixerCard(
        title="LIMe",
        summary="A learned matrix per layer mixes the keys and values of all layers and heads so far into its own.",
        paper="arXiv 2502.09245",
        equation=(
            "(k̃, ṽ)_b^l = Σ_{j ≤ l} Σ_{b'} R^l_{b,(j,b')}·(k, v)_{b'}^j  for l > 0, before head norm and RoPE\n"
            "k, v raw: as projected, not mixed"
        ),
        family="attention",
        acts_on="key and value, before RoPE",
        parameters="G²·(L·(L+1)/2 − 1)",
        kv_bytes="2·L·G·d·e",
        in_flight_bytes="D·e + 2·G·d·e·(L−1)",
        neutral="initial: identity, at initialisation, bit for bit",
        neutral_settings=(Neutral(options={"initial": "identity"}),),
        notes=(
            "As published: sources are raw, a layer's own heads are among them, one matrix serves keys and values, "
            "the mix is cached, and the first layer has no matrix. The authors' code starts the weights of earlier "
            "layers uniformly (initial: uniform); identity is our default, so that training starts from a plain "
            "decoder. Mixed keys then pass through the reading layer's head norm, where there is one. In a looped "
            "decoder every unrolled step is a source and has a matrix of its own."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.initial = config.initial
        self.last_step = shape.num_steps - 1
        heads = shape.num_kv_heads
        #: step → R [G, (step + 1)·G], own heads last.
        self.routers = nn.ParameterDict(
            {str(step): nn.Parameter(torch.empty(heads, (step + 1) * heads)) for step in range(1, shape.num_steps)}
        )

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        heads = self.shape.num_kv_heads
        for router in self.routers.values():
            nn.init.zeros_(router)
            if self.initial == "uniform":
                bound = math.sqrt(3 / router.size(1))
                nn.init.uniform_(router[:, :-heads], -bound, bound, generator=generator)
            nn.init.eye_(router[:, -heads:])

    def plan(self) -> Plan:
        return replace(super().plan(), needs_own_kv=True)

    def mix_raw_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        site, k, v = call.site, call.k, call.v
        sources = (*state.memory, torch.cat([k, v], dim=-1))
        if site.step:
            k, v = _routed(self.routers[str(site.step)], sources).chunk(2, dim=-1)
        return state._replace(memory=sources if site.step < self.last_step else ()), k, v

    def flops_per_token(self) -> int:
        pairs: int = sum(router.numel() for router in self.routers.values())
        return 4 * self.shape.head_dim * pairs

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        if site.branch == "mlp" or site.step == 0:
            return ()
        return self.shape.sites()[::2][: site.step + 1]


def _routed(router: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """[B, G, T, 2d] from sources [B, G, T, 2d]."""
    # One after the other: stacked, a copy of all of them would be kept for every layer that reads them.
    total: Tensor | None = None
    for weights, source in zip(router.chunk(len(sources), dim=1), sources, strict=True):
        each, flat = weights.expand(source.size(0), -1, -1), source.flatten(2)
        total = torch.bmm(each, flat) if total is None else torch.baddbmm(total, each, flat)
    assert total is not None
    return total.view(*sources[0].shape)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [Lime]
