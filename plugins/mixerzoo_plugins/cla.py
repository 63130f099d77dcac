"""Cross-Layer Attention (arXiv 2405.12981): consecutive layers share one layer's keys and values."""

from __future__ import annotations

from pydantic import Field

from mixerzoo import AttentionMixer, DecoderShape, Mixer, MixerCard, MixerConfig, Neutral, Plan, hookimpl


class Config(MixerConfig):
    """Options of Cross-Layer Attention."""

    group: int = Field(
        2, ge=1, description="How many consecutive layers share the first one's keys and values; 1 shares nothing."
    )


class CLA(AttentionMixer[Config]):
    """Keys and values of the first step of each group, through the plan alone."""

    name = "cla"
    card = MixerCard(
        title="Cross-Layer Attention",
        summary="Consecutive layers share the keys and values of the first of them.",
        paper="arXiv 2405.12981",
        equation="o^l = softmax(q^l·K^fᵀ / √d)·V^f,  f = group·⌊l / group⌋",
        family="cache",
        acts_on="key and value slots of the cache, through the plan",
        parameters="0",
        kv_bytes="2·⌈L/group⌉·G·d·e",
        in_flight_bytes="D·e",
        neutral="group 1, or one layer, bit for bit",
        neutral_settings=(Neutral(options={"group": 1}), Neutral(num_steps=1)),
        notes=(
            "Groups are counted from the first layer; where group does not divide the depth, the last one is "
            "smaller. Layers that borrow keys and values have no projections for them. In a looped decoder groups "
            "count unrolled steps, so they may cross the border of a loop. A mixer that needs each layer's own keys "
            "and values can be joined with it at group 1 only."
        ),
    )

    def __init__(self, config: Config, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        #: step → the step whose keys and values it attends to.
        self.owners = tuple(step - step % config.group for step in range(shape.num_steps))

    def plan(self) -> Plan:
        return Plan.borrowing(self.shape.order, self.owners, self.owners)


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [CLA]
