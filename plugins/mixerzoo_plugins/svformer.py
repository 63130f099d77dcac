"""SVFormer (arXiv 2410.17897): every layer attends with the first layer's values; keys are stored per layer."""

from __future__ import annotations

from mixerzoo import AttentionMixer, Mixer, MixerCard, Neutral, Plan, hookimpl


class SVFormer(AttentionMixer):
    """Values of step 0 in every step, through the plan alone."""

    name = "svformer"
    card = MixerCard(
        title="SVFormer",
        summary="Every layer attends with the first layer's values; only keys are stored per layer.",
        paper="arXiv 2410.17897",
        equation="o^l = softmax(q^l·K^lᵀ / √d)·V^0",
        family="cache",
        acts_on="value slots of the cache, through the plan",
        parameters="0",
        kv_bytes="(L+1)·G·d·e",
        in_flight_bytes="D·e",
        neutral="one layer, bit for bit",
        neutral_settings=(Neutral(num_steps=1),),
        notes=(
            "Layers that borrow their values have no projection for them. In a looped decoder every unrolled step "
            "reads the values of step 0, later runs of layer 0 included. A mixer that needs each layer's own "
            "values cannot be joined with it."
        ),
    )

    def plan(self) -> Plan:
        steps = range(self.shape.num_steps)
        return Plan.borrowing(self.shape.order, k_slot=steps, v_slot=(0,) * len(steps))


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [SVFormer]
