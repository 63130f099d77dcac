"""What a mixer says of itself and is not so: accounts of large decoders, options, neutral settings, seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionMixer,
    Context,
    DecoderShape,
    MixerConfig,
    MixingWeights,
    Plan,
    Site,
)
from mixerzoo_plugins.attn_res import AttnRes
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.depth_attention import DepthAttention
from mixerzoo_plugins.mudd import Mudd
from wrong.basis import Projected, Scaled, Stream, caught_by
from wrong.modes import Weakened

# Accounts.


@caught_by("accounts_at_size")
class CountsLayersNotPairs(DenseFormer):
    """FLOPs that grow with the depth, where they grow with its square; up to a dozen layers that is about the same."""

    def flops_per_token(self) -> int:
        return min(super().flops_per_token(), 12 * self.shape.hidden_size * self.shape.num_steps)


@caught_by("accounts_at_size")
class CountsAMatrix(Scaled):
    """Counts a product with a matrix that it does not have, which is little in a narrow decoder."""

    def flops_per_token(self) -> int:
        return 4 * self.shape.num_steps * self.shape.hidden_size + self.shape.hidden_size**2 // 16


@caught_by("accounts_at_size")
class FearsDepth(Stream):
    """Declares a history for deep decoders that it does not keep."""

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return super().in_flight_bytes(dtype) * max(1, self.shape.num_steps - 15)


class History(NamedTuple):
    """The stream, and what it keeps beside it."""

    x: Tensor
    kept: tuple[Tensor, ...]


class Kept(Stream):
    """Correct: a state of the stream and more, of which nobody reads more than the stream."""

    def start(self, x: Tensor, context: Context) -> Any:
        return History(x, ())

    def read(self, state: Any, site: Site) -> Tensor:
        x: Tensor = state.x
        return x

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        return History(state.x + y, state.kept)

    def finish(self, state: Any) -> Tensor:
        x: Tensor = state.x
        return x

    def last_token(self, state: Any) -> Any:
        return History(state.x[:, -1:], tuple(part[:, -1:] for part in state.kept))


@caught_by("accounts_at_size")
class KeepsAllWhenDeep(Kept):
    """Keeps every output from the 16th layer on, and declares one stream."""

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        return History(state.x + y, (*state.kept, y) if site.step > 15 else state.kept)

    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return self.shape.hidden_size * dtype.itemsize


@caught_by("accounts_at_size")
class KeepsAMap(Kept):
    """A map of blocks of 64 tokens, whose bytes per token grow with the text."""

    def start(self, x: Tensor, context: Context) -> Any:
        num_blocks = x.size(1) // 64
        return History(x, (x.new_zeros(*x.shape[:2], 8 * num_blocks),) if num_blocks else ())


@caught_by("accounts_at_size")
class CapsItsParameters(Stream):
    """A weight for each of the first 64 channels; the card knows of no such limit."""

    card = replace(Stream.card, parameters="D")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.weight = nn.Parameter(torch.empty(min(64, shape.hidden_size)))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.weight, 1.0, std, generator=generator)

    def finish(self, state: Tensor) -> Tensor:
        size = self.weight.numel()
        return torch.cat([self.weight * state[..., :size], state[..., size:]], -1)

    def flops_per_token(self) -> int:
        return self.weight.numel()


@caught_by("sources")
class NamesLaterSourcesWhenDeep(DenseFormer):
    """From the 20th layer on it is off by one."""

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        named = super().sources(site)
        sites = self.shape.sites()
        return (*named, sites[-1]) if named and site.step >= 20 else named


@caught_by("mixing_weights")
class ShowsTheLatest(AttnRes):
    """Of more than sixteen sources it shows the latest, whose weights are not all."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        shown = super().mixing_weights(state, site, call)
        return shown and MixingWeights(shown.weights[..., -16:], shown.sources[-16:])


@caught_by("source_names")
class NamesAreTooFew(AttnRes):
    """Leaves the embedding out of the names."""

    def mixing_weights(self, state: Any, site: Site, call: AttentionCall | None = None) -> MixingWeights | None:
        shown = super().mixing_weights(state, site, call)
        return shown and shown._replace(names=shown.names[1:])


@caught_by("source_names")
class NamesAreOfOtherSublayers(Mudd):
    """Calls what the head reads by the attentions of the layers that gave it."""

    def final_weights(self, state: Any) -> MixingWeights | None:
        shown = super().final_weights(state)
        return shown and shown._replace(names=(None, *self.shape.sites()[::2]))


@caught_by("source_names")
class NamesAreTurnedRound(DenseFormer):
    """Names its sources from the latest to the embedding, and weighs them from the embedding on."""

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        return super().sources(site)[::-1]


@caught_by("source_names")
class NamesValuesByTheLayerBefore(DepthAttention):
    """Calls values by the layers before those that made them."""

    def sources(self, site: Site) -> tuple[Site | None, ...]:
        order = self.shape.order
        earlier = [max(read.step - 1, 0) for read in super().sources(site) if read is not None]
        return tuple(Site(step, order[step], "attention") for step in earlier)


# Options.


class Two(MixerConfig):
    """Options."""

    strength: float = Field(0.5, ge=0, le=1, description="Weight of every output.")
    softened: bool = Field(False, description="Soften what is read.")


@caught_by("options_matter")
class IgnoresAnOption(Weakened):
    """The second option is read nowhere."""

    Config = Two


@caught_by("options_matter")
class ClampsAnOption(Weakened):
    """Accepts a strength up to 4, and takes any above 1 for 1."""

    class Config(MixerConfig):
        """Options."""

        strength: float = Field(0.5, ge=0, le=4, description="Weight of every output.")

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.strength = min(1.0, config.strength)


@caught_by("options_matter")
class ClampsFromBelow(Weakened):
    """Takes small numbers of parts for four."""

    class Config(MixerConfig):
        """Options."""

        parts: int = Field(4, ge=1, description="Parts of a whole; an output's weight is one of them.")

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super(Weakened, self).__init__(config, shape)
        self.strength = 1 / max(4, config.parts)


@caught_by("options_matter")
class TakesTwoNamesForOne(Weakened):
    """`mean` and `sum` are two names of what it does anyway."""

    class Config(MixerConfig):
        """Options."""

        kind: Literal["half", "mean", "sum"] = Field("half", description="How outputs are added.")

    def __init__(self, config: Any, shape: DecoderShape) -> None:
        super(Weakened, self).__init__(config, shape)
        self.strength = 0.5 if config.kind == "half" else 1.0


# Neutral in words.


@caught_by("neutral_words")
class SaysThatItIsNeutral(Scaled):
    """At initialisation, it says; and nobody can try, for it says so in words alone."""

    card = replace(Scaled.card, neutral="at initialisation, bit for bit")


@caught_by("neutral_words")
class NamesAStrengthInWords(Weakened):
    """Knows at which strength it is neutral, and tells people only."""

    card = replace(Weakened.card, neutral="strength: 1.0, bit for bit")


# Heads.


class SharedOut(AttentionMixer):
    """Correct: values are halved, each head's by itself, and it says so."""

    name = "shared_out"
    card = replace(Stream.card, family="attention")

    def plan(self) -> Plan:
        return replace(super().plan(), needs_own_kv=True, heads_apart=True)

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        return state, call.k, call.v / 2


@caught_by("heads_apart")
class LooksAtOtherHeads(SharedOut):
    """Adds the mean over all heads to each head's values."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        return state, call.k, call.v + call.v.mean(dim=1, keepdim=True)


@caught_by("heads_apart")
class CountsHeads(SharedOut):
    """Another factor for each head, by its number."""

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        numbers = torch.arange(1, call.v.size(1) + 1, device=call.v.device, dtype=call.v.dtype)
        return state, call.k, call.v / numbers[:, None, None]


@caught_by("heads_apart")
class GatesEachHead(SharedOut):
    """A parameter for each key/value head, which a rank that has some of the heads does not have."""

    card = replace(SharedOut.card, parameters="L·G")

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.gate = nn.Parameter(torch.empty(shape.num_steps, shape.num_kv_heads, 1, 1))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        nn.init.normal_(self.gate, 1.0, std, generator=generator)

    def mix_kv(self, state: Any, call: AttentionCall) -> tuple[Any, Tensor, Tensor]:
        return state, call.k, self.gate[call.site.step] * call.v


# Seeds.


@caught_by("seeds_matter")
class SeedsItself(Scaled):
    """Reproducible: a generator of its own, with the seed that its author likes."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        own = torch.Generator().manual_seed(42)
        nn.init.normal_(self.scale, 1.0, std, generator=own)


@caught_by("seeds_matter")
class SeedsTheGenerator(Projected):
    """Seeds the generator that it was given."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(generator.manual_seed(0), std)


@caught_by("seeds_matter")
class SeedsByItsSizes(Projected):
    """Draws by what it is, not by the seed."""

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        super().reset_parameters(torch.Generator().manual_seed(self.shape.hidden_size), std)
