"""FusedKV-Lite (arXiv 2512.03870): the upper half reads a middle layer's keys and the bottom layer's values."""

from __future__ import annotations

from mixerzoo import AttentionMixer, DecoderShape, Mixer, MixerCard, MixerConfig, Neutral, Plan, hookimpl


class FusedKVLite(AttentionMixer):
    """Keys and values from two different layers, through the plan alone."""

    name = "fusedkv_lite"
    card = MixerCard(
        title="FusedKV-Lite",
        summary="The upper half attends with the keys of the middle layer and the values of the bottom one.",
        paper="arXiv 2512.03870",
        equation="o^l = softmax(q^l·K^mᵀ / √d)·V^0  for l > m,  m = ⌈L/2⌉ − 1",
        family="cache",
        acts_on="key and value slots of the cache, through the plan",
        parameters="0",
        kv_bytes="2·⌈L/2⌉·G·d·e",
        in_flight_bytes="D·e",
        neutral="one layer, bit for bit",
        neutral_settings=(Neutral(num_steps=1),),
        notes=(
            "The middle layer is the last one that stores its own keys and values, as in the paper, which has even "
            "depths only; an odd depth gives the lower half the layer more. Keys are shared after norm and RoPE. "
            "Layers that borrow keys and values have no projections for them. In a looped decoder the halves count "
            "unrolled steps. A mixer that needs each layer's own keys and values cannot be joined with it."
        ),
    )

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        #: m, the last step with keys and values of its own.
        self.middle = (shape.num_steps - 1) // 2

    def plan(self) -> Plan:
        steps = range(self.shape.num_steps)
        return Plan.borrowing(
            self.shape.order,
            k_slot=tuple(min(step, self.middle) for step in steps),
            v_slot=tuple(step if step <= self.middle else 0 for step in steps),
        )


@hookimpl
def mixerzoo_mixers() -> list[type[Mixer]]:
    return [FusedKVLite]
