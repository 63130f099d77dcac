"""Another method than the one that it says it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    DecoderShape,
    MixerConfig,
    MixingWeights,
    ParameterRole,
    Plan,
    ReferenceReading,
    Site,
)
from mixerzoo.testing import Reference
from mixerzoo.testing.reference import TokenMixer
from mixerzoo_plugins import depth_attention
from mixerzoo_plugins.attn_res import AttnRes
from mixerzoo_plugins.dca import Dca
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.depth_attention import DepthAttention
from mixerzoo_plugins.lime import Lime
from mixerzoo_plugins.residual import Residual
from mixerzoo_plugins.satformer import SATFormer
from mixerzoo_plugins.yoco import YOCO
from naive import attn_res as naive_attn_res
from naive import denseformer as naive_denseformer
from naive import depth_attention as naive_depth_attention
from naive import lime as naive_lime
from naive import satformer as naive_satformer
from naive import yoco as naive_yoco
from wrong.basis import caught_by


@caught_by("reference_logits", naive_depth_attention.REFERENCE)
class MixesRawValues(DepthAttention):
    """Later layers get raw values in place of mixed ones: sound in itself, and another method."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        site, k, v = call.site, call.k, call.v
        new, k, mixed = super().mix_kv(state, call)
        kept = new.memory.kept
        if kept and site.step in self.held[site.step]:
            kept = (*kept[:-1], kept[-1]._replace(v=kept[-1].v if kept[-1].v is None else v))
        return new._replace(memory=new.memory._replace(kept=kept)), k, mixed


@caught_by("reference_logits", naive_denseformer.REFERENCE)
class AveragesAverages(DenseFormer):
    """Its history keeps what the averages gave, not the raw outputs of the blocks."""

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        new = super().write(state, site, y)
        if site.branch == "mlp" and site.step + 1 in self.held[site.step + 1]:
            new = new._replace(history=(*new.history[:-1], new.x))
        return new


class Weighted(Residual):
    """Correct: attention and MLP outputs are weighted by two parameters whose names have the same letters."""

    card = replace(Residual.card, parameters="2", neutral_settings=(), neutral="")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.w_am, self.w_ma = (nn.Parameter(torch.empty(())) for _ in range(2))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.parameters():
            nn.init.ones_(weight)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (self.w_am if site.branch == "attention" else self.w_ma) * y


class NaiveWeighted(TokenMixer):
    """x ← x + w·y."""

    def __init__(self, embedding: Tensor, weights: dict[str, Tensor]) -> None:
        super().__init__(embedding)
        self.weights = weights

    def write(self, step: int, layer: int, branch: str, y: Tensor) -> None:
        self.x = self.x + self.weights[branch] * y


def weighted(mixer: Any) -> Any:
    """`Reference.begin` of `Weighted`."""
    return lambda embedding, token: NaiveWeighted(embedding, {"attention": mixer.w_am, "mlp": mixer.w_ma})


WEIGHTED = Reference(weighted)


@caught_by("reference_logits", WEIGHTED)
class TakesTheOtherWeight(Weighted):
    """Two parameters changed places; with equal noise on both, nobody could tell."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (self.w_ma if site.branch == "attention" else self.w_am) * y


@caught_by("reference_accounts", naive_denseformer.REFERENCE)
class ForgetsTheEmbedding(DenseFormer):
    """Its picture lacks a source, which no rule about pictures forbids."""

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return tuple(source for source in super().sources(site) if source is not None)


@caught_by("reference_accounts", naive_denseformer.REFERENCE)
class HoldsABitMore(DenseFormer):
    """Declares one stream more than it ever holds."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return super().in_flight_bytes(dtype) + self.shape.hidden_size * dtype.itemsize


@caught_by("reference_accounts", naive_satformer.REFERENCE)
class LetsNothingDecay(SATFormer):
    """Forgets the role of its projections, which it may have."""

    def parameter_roles(self) -> dict[str, ParameterRole]:
        return {}


@caught_by("reference_accounts", naive_yoco.REFERENCE)
class HasTheWindowAbove(YOCO):
    """Lets the self-decoder see everything. Its plan is sound, and the reference is run by it."""

    def plan(self) -> Plan:
        return replace(super().plan(), windows=(None,) * self.shape.num_steps)


@caught_by("reference_accounts", naive_depth_attention.REFERENCE)
class CountsScoresOnly(DepthAttention):
    """Half of its FLOPs, which passes for a convention."""

    def flops_per_token(self) -> int:
        return super().flops_per_token() // 2


@caught_by("reference_checkpoints", naive_attn_res.REFERENCE, named=False)
class ForgetsBlocks(AttnRes):
    """Reads every checkpoint of its method as one without blocks."""

    @classmethod
    def read_reference(cls, config: Any, tensors: Any) -> ReferenceReading | None:
        reading = super().read_reference(config, tensors)
        if reading is None:
            return None
        return replace(reading, options={**reading.options, "block_size": 1})


@caught_by("reference_start", naive_attn_res.REFERENCE)
class StartsElsewhere(AttnRes):
    """Its recency bias starts at 0, whatever the option says."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(generator, std)
        for name, parameter in self.named_parameters():
            if name.endswith("recency_bias"):
                nn.init.zeros_(parameter)


@caught_by("reference_start", naive_satformer.REFERENCE)
class GatesStartWide(SATFormer):
    """Draws its gates with twice the standard deviation of other projections."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(generator, 2 * std)


@caught_by("reference_start", naive_lime.REFERENCE)
class RoutersStartPositive(Lime):
    """Draws what reads other layers from 0 on, where the paper has it around 0."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(generator, std)
        for router in self.routers.values():
            router.abs_()


@caught_by("reference_cases", naive_depth_attention.REFERENCE)
class ScoresAnyway(DepthAttention):
    """On latents its uniform weights are not: a combination that draws rarely meet."""

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scores = self.scores or shape.latent_dim > 0


class Lenient(depth_attention.Config):
    """Options without their rule."""

    def _first_is_alone(self) -> Any:
        return self


@caught_by("reference_refusals", naive_depth_attention.REFERENCE)
class RefusesNothing(DepthAttention):
    """Takes a stride beside `sources: first`, which has none."""

    Config = Lenient


@caught_by("reference_accounts", naive_depth_attention.REFERENCE)
class BorrowsKeysAndValues(DepthAttention):
    """Says that layers may borrow keys and values, as parts of a composition do."""

    def plan(self) -> Plan:
        return replace(super().plan(), needs_own_kv=False)


@caught_by("reference_weights", naive_attn_res.REFERENCE)
class ShowsWeightsOfTheHeadAlone(AttnRes):
    """Shows nobody what sublayers read."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        return None


@caught_by("mixing_weights")
class ShowsOtherWeights(AttnRes):
    """Shows the mean, which it does not take."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        shown = super().mixing_weights(state, site, call)
        return shown and shown._replace(weights=torch.full_like(shown.weights, 1 / len(shown.sources)))


@caught_by("mixing_weights")
class ShowsOtherWeightsOfTheHead(AttnRes):
    """Shows the mean, which the head does not read."""

    def final_weights(self, state: Any) -> MixingWeights | None:
        shown = super().final_weights(state)
        return shown and shown._replace(weights=torch.full_like(shown.weights, 1 / len(shown.sources)))


@caught_by("mixing_weights")
class ShowsOtherWeightsOfWriting(DenseFormer):
    """Shows the weights in the wrong order."""

    def write_weights(self, state: Any, site: Site, y: Tensor) -> MixingWeights | None:
        shown = super().write_weights(state, site, y)
        return shown and shown._replace(weights=shown.weights.flip(0))


@caught_by("mixing_weights")
class ShowsNoChannels(Dca):
    """Shows the weights of tokens without those of channels, to which they are added."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        shown = super().mixing_weights(state, site, call)
        return shown and shown._replace(channels=None)


@caught_by("mixing_weights")
class ShowsOnlyTheFirst(DepthAttention):
    """Shows weights where there is a first source to mix, and none after that."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        return super().mixing_weights(state, site, call) if len(self.sources(site)) < 3 else None


@caught_by("mixing_weights")
class ShowsLaterTokens(Residual):
    """Its two sources are one, and how they share it depends on the whole text."""

    def mixing_weights(self, state: Tensor, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        share = state[..., :1].mean(1, keepdim=True).expand_as(state[..., :1])
        return MixingWeights(torch.cat([share, 1 - share], dim=-1), (state, state))


@caught_by("mixing_weights")
class ShowsWeightsOfChannels(Residual):
    """One weight a channel, where one a token is promised."""

    def mixing_weights(self, state: Tensor, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        return MixingWeights(torch.ones_like(state)[..., None], (state,))
