"""YOCO (arXiv 2405.05254): windowed layers below, and above them layers that query one global cache."""

from __future__ import annotations

from pydantic import Field

from mixerzoo import AttentionMixer, DecoderShape, Mixer, MixerCard, MixerConfig, MixerError, Neutral, Plan, hookimpl


class Config(MixerConfig):
    """Options of YOCO."""

    window: int = Field(
        1024, ge=2, description="How many most recent tokens, itself included, a token sees in the lower layers."
    )
    self_layers: int = Field(
        1, ge=1, description="Layers of the self-decoder, the windowed ones, in proportion to cross_layers."
    )
    cross_layers: int = Field(
        1, ge=1, description="Layers of the cross-decoder, which read the global cache, in proportion to self_layers."
    )


class YOCO(AttentionMixer[Config]):
    """A self-decoder with windows, and a cross-decoder whose layers share one global slot, through the plan alone."""

    name = "yoco"
    card = MixerCard(
        title="YOCO",
        summary="Lower layers attend within a window; one global cache made from their output serves all upper layers.",
        paper="arXiv 2405.05254",
        equation=(
            "lower, l < M:  attention to the last window tokens\n"
            "K̂ = W_K·norm(X^M),  V̂ = W_V·norm(X^M)\n"
            "upper, l ≥ M:  o^l = softmax(q^l·K̂ᵀ / √d)·V̂\n"
            "M = ⌊L·self_layers / (self_layers + cross_layers)⌋"
        ),
        family="cache",
        acts_on="slots and windows of the cache, through the plan",
        parameters="0",
        kv_bytes="2·(⌊L·self_layers/(self_layers + cross_layers)⌋ + 1)·G·d·e",
        in_flight_bytes="D·e",
        neutral="one layer, bit for bit",
        neutral_settings=(Neutral(num_steps=1),),
        notes=(
            "kv_bytes is what a token adds while the windows fill; beyond them it is 2·G·d·e. The self-decoder is the "
            "paper's sliding-window variant, not gated retention. The global keys and values come from the output of "
            "the self-decoder, as in the paper; they are projections of the first cross layer, which reads that "
            "output, and share its input norm, where the paper's code has a norm for them alone: the projections can "
            "absorb its gain. Other cross layers have no projections for keys and values. Where only the last "
            "token's logits are asked for, the cross layers after the first are run for that token alone. In a "
            "looped decoder M counts unrolled steps. A mixer that needs each layer's own keys and values cannot be "
            "joined with it."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.window = config.window
        #: M, the first step of the cross-decoder.
        self.middle = shape.num_steps * config.self_layers // (config.self_layers + config.cross_layers)
        if shape.num_steps > 1 and not self.middle:
            raise MixerError(
                f"yoco: self_layers {config.self_layers} to cross_layers {config.cross_layers} leave none of "
                f"{shape.num_steps} layers to the self-decoder, whose window would mean nothing; set more self_layers"
            )

    def plan(self) -> Plan:
        steps = range(self.shape.num_steps)
        slots = tuple(min(step, self.middle) for step in steps)
        windows = tuple(self.window if step < self.middle else None for step in steps)
        return Plan.borrowing(self.shape.order, slots, slots, windows)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [YOCO]
