"""What goes wrong only where there is much of something: tokens, rows, heads, channels, layers, runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mixerzoo import (
    AttentionCall,
    AttentionState,
    Context,
    DecoderShape,
    MixerConfig,
    Plan,
    Site,
)
from mixerzoo.errors import MixerError
from mixerzoo_plugins import denseformer
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.depth_attention import DepthAttention
from naive import denseformer as naive_denseformer
from naive import depth_attention as naive_depth_attention
from wrong.basis import Remembering, Scaled, Stream, caught_by, shifted
from wrong.decoding import SharedKeys


@caught_by("causality")
class CentresBlocksOf64(Stream):
    """Centres over whole blocks of 64 tokens, which no sentence fills."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        blocks = [part - 0.1 * part.mean(1, keepdim=True) if part.size(1) == 64 else part for part in y.split(64, 1)]
        return state + torch.cat(blocks, 1)


@caught_by("causality")
class ScalesLongTexts(Stream):
    """In texts of more than 128 tokens it guards against outliers by the largest value of the whole text."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        if state.size(1) <= 128:
            return state
        return state.clamp(max=0.9 * state.amax(1, keepdim=True))


@caught_by("cached_decoding")
class ConvolvesLongCalls(Remembering):
    """A convolution where more than 64 tokens come at once: it knows its call and not what came before."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + (shifted(x) if x.size(1) > 64 else context.earlier[0]) / 2


@caught_by("cached_decoding")
class TreatsFirst512(Stream):
    """A table of 512 places: what comes later in a call goes without."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + torch.cat([y[:, :512] / 2, y[:, 512:]], 1)


@caught_by("rows_independent")
class CentresEightRows(Stream):
    """Statistics over whole groups of eight rows; a smaller batch has none."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        groups = [part - 0.1 * part.mean(0, keepdim=True) if part.size(0) == 8 else part for part in y.split(8)]
        return state + torch.cat(groups)


@caught_by("rows_independent")
class ServesSixteenRows(Stream):
    """Gates of 16 rows, which the rows after them take over."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        gates = x[:16, :, :1].repeat(math.ceil(x.size(0) / 16), 1, 1)
        return x * (1 + gates[: x.size(0)])


@caught_by("token_local_mixing")
class ReadsBackInLongTexts(Stream):
    """Another path for more than 48 tokens, which also looks at the token before."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state + 0.1 * shifted(state) if state.size(1) > 48 else state


@caught_by("extremes")
class KnowsTwentySteps(Stream):
    """A table of depths, which ends."""

    table = tuple(1 - step / 40 for step in range(20))

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.table[site.step] * y


@caught_by("extremes")
class CountsEightRuns(Stream):
    """Damps a layer by the number of its run, of which it has foreseen eight."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        run = self.shape.order[: site.step].count(site.layer)
        return state + (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)[run] * y


@caught_by("reference_logits", naive_denseformer.REFERENCE)
class CapsItsHistory(DenseFormer):
    """Averages over the latest sixteen outputs; of a shallow decoder these are all."""

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        if site.branch == "attention":
            return super().write(state, site, y)
        zeros = [torch.zeros_like(x) for x in state.history[:-16]]
        return super().write(state._replace(history=(*zeros, *state.history[-16:])), site, y)


@caught_by("reference_logits", naive_depth_attention.REFERENCE)
class GroupsManyHeadsWrongly(DepthAttention):
    """With more than eight query heads it takes them for interleaved."""

    def mix_kv(self, state: AttentionState, call: AttentionCall) -> tuple[AttentionState, Tensor, Tensor]:
        if self.shape.num_heads > 8:
            groups = call.q.unflatten(1, (-1, self.shape.num_kv_heads))
            call = call._replace(q=groups.transpose(1, 2).flatten(1, 2))
        return super().mix_kv(state, call)


@caught_by("gradients_are_derivatives")
class DetachesOldSources(DenseFormer):
    """Truncates the backward to the latest sixteen outputs."""

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        x, history = super().write(state, site, y)
        return denseformer.State(x, (*(h.detach() for h in history[:-16]), *history[-16:]))


@caught_by("every_parameter_learns")
class LeavesDeepWeightsAlone(Scaled):
    """From the 32nd weight on all sites take the same one."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        del self.scale
        self.weights = nn.ParameterList(torch.empty(1) for _ in range(2 * shape.num_steps))

    def reset_parameters(self, generator: torch.Generator, std: float) -> None:
        for weight in self.weights:
            nn.init.normal_(weight, 1.0, std, generator=generator)

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + self.weights[min(site.number, 31)] * y


@caught_by("causality")
class LeaksInWideHeads(Stream):
    """Heads of 64 channels take a path of their own, which centres values over the text."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        v = call.v if call.v.size(-1) < 64 else call.v - 0.1 * call.v.mean(2, keepdim=True)
        return state, call.k, v


@caught_by("causality")
class LeaksInManyHeads(Stream):
    """So do more than eight key/value heads."""

    def mix_kv(self, state: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        v = call.v if call.v.size(1) <= 8 else call.v - 0.1 * call.v.mean(2, keepdim=True)
        return state, call.k, v


@caught_by("inputs_untouched")
class SavesMemoryInPlace(Stream):
    """Adds in place where it is worth it."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return y.add_(state) if y.numel() > 4096 else state + y


@caught_by("nothing_kept")
class KeepsLongPrompts(Stream):
    """Remembers a long text's embeddings, should it come again."""

    prompt: Tensor | None = None

    def start(self, x: Tensor, context: Context) -> Tensor:
        if x.size(1) > 128:
            self.prompt = x.detach()
        return x


@caught_by("last_token")
class FindsLastOf128(SharedKeys):
    """Looks for the last token among the first 128."""

    card = replace(Stream.card, kv_bytes="2·G·d·e")

    def last_token(self, state: Tensor) -> Tensor:
        return state[:, :128][:, -1:]


@caught_by("ordinary_decoder")
class RefusesWidth(Stream):
    """Serves toys."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if shape.hidden_size > 512:
            raise MixerError(f"a width of {shape.hidden_size} is more than 512")


@caught_by("ordinary_decoder")
class RefusesManyHeads(Stream):
    """Has room for eight."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if shape.num_heads > 8:
            raise MixerError(f"{shape.num_heads} heads are more than 8")


@caught_by("ordinary_decoder")
class RefusesDeepDecoders(Stream):
    """Counts layers on its fingers, and twice."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if shape.num_steps > 20:
            raise MixerError(f"{shape.num_steps} steps are more than 20")


@caught_by("ordinary_decoder")
class RefusesVocabularies(Stream):
    """Keeps ids in 16 bits."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        if shape.vocab_size >= 2**15:
            raise MixerError(f"a vocabulary of {shape.vocab_size} does not fit in 16 bits")


@caught_by("precisions")
class AddsWideStreamsInBf16(Stream):
    """Saves bandwidth where there is much to add."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y if y.numel() <= 4096 else (state.bfloat16() + y.bfloat16()).to(y.dtype)


@caught_by("kv_bytes")
class BorrowsWhenDeep(Stream):
    """Above the 20th step all attend to the keys and values of that one, and the card does not say so."""

    def plan(self) -> Plan:
        steps = tuple(min(step, 19) for step in range(self.shape.num_steps))
        return Plan.borrowing(self.shape.order, steps, steps)


@caught_by("left_padding")
class TakesLongPaddingForText(Stream):
    """The first column of a long row is the first token of a text to it."""

    def start(self, x: Tensor, context: Context) -> Tensor:
        return x + 0.1 * x[:, :1] if x.size(1) > 100 else x


#: Numbers in a stream from which on these take another path.
_MUCH = 2**17


@caught_by("cached_decoding")
class RoundsLargeStreams(Stream):
    """A faster path for large tensors, less exact than it should be."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y if y.numel() < _MUCH else torch.lerp(state, state + y, 0.9999)


class _Blocks(MixerConfig):
    block_size: int = Field(1, ge=1, description="Layers whose outputs are scaled alike.")


@caught_by("cached_decoding")
class ForgetsInLargeBlocks(Stream):
    """Adds at once what some layers give where there is much of it: not for the last layers, which fill no block."""

    Config = _Blocks

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        size = self.config.block_size
        whole = self.shape.num_steps // size * size
        return state + y / size if y.numel() < _MUCH or site.step < whole or size == 1 else state + y


@caught_by("gradients_are_derivatives")
class DetachesLargeStreams(Stream):
    """Saves memory where there is much to keep for the backward."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + (y if y.numel() < _MUCH else y.lerp(y.detach(), 0.1))


@caught_by("inputs_untouched")
class AddsLargeStreamsInPlace(Stream):
    """Saves memory where nothing is kept for a backward and there is much to add."""

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        return state + y if torch.is_grad_enabled() or y.numel() < _MUCH else y.add_(state)


@caught_by("wide_norms")
class NormsLargeStreamsInBf16(Stream):
    """Saves bandwidth where there is much to norm."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        wide = state if state.numel() >= _MUCH else state.to(torch.promote_types(state.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1)).to(state.dtype)


@caught_by("returns")
class WidensLargeStreams(Stream):
    """Leaves the sum of large tensors as wide as it was computed."""

    def read(self, state: Tensor, site: Site) -> Tensor:
        return state if state.numel() < _MUCH else state.to(torch.promote_types(state.dtype, torch.float32))
