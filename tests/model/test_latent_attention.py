"""Multi-head latent attention: against DeepSeek's own, against the naive references, and through the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import zoo
from case import LATENT, LOOPED, ZooCase
from mixerzoo import Decoder, KVCache, MixerError, ModelConfig

MLA = dict(LATENT)
SIZES = MLA["mla"]
COMPRESSED = {**MLA, "mla": {**SIZES, "q_lora_rank": 5}}
#: Depth-Attention unrolls differently for each of these.
DEPTH_ATTENTION = (
    ZooCase("depth_attention", {"stride": 1}),
    ZooCase("depth_attention", {"stride": 2, "recent_window": 1}, LOOPED),
    ZooCase("depth_attention", {"stride": 2, "sources": "relative"}, LOOPED),
    ZooCase("depth_attention", {"stride": 1, "weights": "uniform"}),
    ZooCase("compose", {"of": [{"name": "denseformer"}, {"name": "depth_attention"}]}),
)


def built(case: ZooCase, **model: Any) -> Decoder:
    """The case's decoder on latent attention, perturbed."""
    fields = {**zoo.MODEL, **case.model, **MLA, "k_norm": "pre_rope", **model}
    return zoo.perturb(zoo.decoder_of(zoo.mixer_class(case.mixer), case.options, fields))


def refusal(case: ZooCase) -> str | None:
    """Why latent attention refuses the case's mixer, or None where it works."""
    try:
        built(case)
    except MixerError as error:
        return str(error)
    return None


CASES = tuple({str(case): case for case in (*zoo.PLAIN_CASES, *DEPTH_ATTENTION)}.values())
REFUSED = {case: reason for case in CASES if (reason := refusal(case)) is not None}
ACCEPTED = tuple(case for case in CASES if case not in REFUSED)


def in_pieces(decoder: Decoder, tokens: Tensor, cache: KVCache, *lengths: int) -> Tensor:
    """Logits of tokens decoded in chunks of these lengths."""
    return torch.cat([decoder(piece, cache) for piece in torch.split(tokens, list(lengths), dim=1)], dim=1)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain queries", "compressed queries"])
@torch.no_grad()
def test_residual_on_it_is_transformers_deepseek(compressed: bool) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    # DeepSeek's norms of latents have an epsilon of their own, 1e-6.
    decoder = built(ZooCase("residual"), norm_eps=1e-6, **(COMPRESSED if compressed else MLA))
    config = decoder.config
    theirs = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=zoo.VOCAB_SIZE,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            **{**SIZES, "q_lora_rank": 5 if compressed else None},
            first_k_dense_replace=config.num_layers,
            rope_interleave=False,
            rms_norm_eps=1e-6,
            attn_implementation="eager",
        )
    ).double()
    theirs.load_state_dict(decoder.state_dict())
    tokens = zoo.some_tokens(2, 9)
    # Their norms, angles and softmax are computed in float32.
    zoo.assert_close(decoder(tokens), theirs(tokens).logits, 1e-5)


@pytest.mark.parametrize("case", ACCEPTED, ids=str)
@torch.no_grad()
def test_every_mixer_equals_its_reference(case: ZooCase) -> None:
    decoder = built(case)
    tokens = zoo.some_tokens(2, 6)
    zoo.assert_close(decoder(tokens), zoo.naive_logits(decoder, tokens))


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex"])
@pytest.mark.parametrize("case", ACCEPTED, ids=str)
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(case: ZooCase, backend: str) -> None:
    if backend == "flex" and "value_weights" in built(case).plan.hooks:
        return  # refused
    decoder = built(case, attention_backend=backend)
    tokens = zoo.some_tokens(2, 9)
    full = decoder(tokens)
    for max_length in (None, 12):
        zoo.assert_close(in_pieces(decoder, tokens, decoder.new_cache(2, max_length), 3, 1, 4, 1), full)
    padding = torch.tensor([2, 0])
    cache = decoder.new_cache(2)
    pieces = [decoder(piece, cache, left_padding=padding) for piece in torch.split(tokens, [4, 5], dim=1)]
    zoo.assert_close(torch.cat(pieces, dim=1)[0, 2:], decoder(tokens[:1, 2:])[0])


@pytest.mark.parametrize("case", DEPTH_ATTENTION, ids=str)
@torch.no_grad()
def test_values_may_be_wider_than_what_the_cache_holds(case: ZooCase) -> None:
    decoder, tokens = built(case, mla={**SIZES, "v_head_dim": 13}), zoo.some_tokens(2, 7)
    full = decoder(tokens)
    zoo.assert_close(full, zoo.naive_logits(decoder, tokens))
    for max_length in (None, 7):
        zoo.assert_close(in_pieces(decoder, tokens, decoder.new_cache(2, max_length), 3, 1, 3), full)


class Adapted(nn.Module):
    """A projection with a low-rank adapter beside it, whose ``weight`` is the projection's alone, as peft has it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.weight = base.weight
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("mixer", ["residual", "depth_attention"])
@torch.no_grad()
def test_cached_decoding_sees_an_adapter_of_the_expansion(mixer: str) -> None:
    decoder = built(ZooCase(mixer))
    tokens = zoo.some_tokens(2, 9)
    plain = decoder(tokens)
    for layer in decoder.model.layers:
        layer.self_attn.kv_b_proj = Adapted(layer.self_attn.kv_b_proj)
    full = decoder(tokens)
    assert not torch.allclose(full, plain)
    zoo.assert_close(in_pieces(decoder, tokens, decoder.new_cache(2), 3, 1, 4, 1), full)


@pytest.mark.parametrize("case", ACCEPTED, ids=str)
@torch.no_grad()
def test_the_cache_holds_latents_and_weights_to_the_byte(case: ZooCase) -> None:
    decoder = built(case)
    plan = decoder.plan
    latents = len(plan.k_slots) * (SIZES["kv_lora_rank"] + SIZES["qk_rope_head_dim"])
    weights = 3 * sum(len(plan.value_sources(step)) for step in range(len(plan.order)))
    cache = decoder.new_cache(2)
    decoder(zoo.some_tokens(2, 9), cache)
    if not any(plan.windows):
        assert cache.nbytes == 2 * (9 * (latents + weights) * 8 + plan.bytes_per_sequence(torch.float64))
    assert cache.bytes_per_token == (latents + weights) * 8


def test_depth_attention_keeps_h_weights_for_each_source_and_step() -> None:
    # L = 6, s = 3: steps 1 to 3 read layer 0, steps 4 and 5 read 0 and 3; each adds itself.
    decoder = built(ZooCase("depth_attention", {"stride": 3}), num_layers=6)
    assert [len(decoder.plan.value_sources(step)) for step in range(6)] == [0, 2, 2, 2, 3, 3]
    assert decoder.plan.elements(decoder.shape) == 6 * (7 + 4) + 3 * (3 * 2 + 2 * 3)


@pytest.mark.parametrize("case", ACCEPTED, ids=str)
def test_recomputation_gives_the_same_gradients(case: ZooCase) -> None:
    decoder = built(case)
    tokens = zoo.some_tokens(2, 5)
    gradients = []
    for recompute in (False, True):
        decoder.model.activation_checkpointing = "layers" if recompute else "none"
        decoder.zero_grad()
        decoder(tokens).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in decoder.parameters() if parameter.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        zoo.assert_close(recomputed, plain)


@pytest.mark.parametrize("mixer", ["residual", "depth_attention"])
@torch.no_grad()
def test_it_compiles_whole(mixer: str) -> None:
    decoder = built(ZooCase(mixer), num_layers=2)
    tokens = zoo.some_tokens(2, 6)
    expected = decoder(tokens)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    zoo.assert_close(compiled(tokens), expected)
    cache = decoder.new_cache(2, max_length=6)
    zoo.assert_close(torch.cat([compiled(tokens[:, t : t + 1], cache) for t in range(6)], dim=1), expected)


def test_mixers_of_keys_and_values_are_refused_by_name_and_streams_are_not() -> None:
    for case, reason in REFUSED.items():
        assert f"{case.mixer!r} cannot work with model.attention mla: " in reason
        assert reason.endswith("use gqa")
    refused = {case.mixer for case in REFUSED}
    assert {"value_residual", "lime", "moda", "svformer", "mudd"} <= refused
    families = {name: zoo.mixer_class(name).card.family for name in zoo.REGISTERED}
    assert not [name for name in refused if families[name] in ("residual", "streams", "composition")]


def test_depth_attention_mixes_values_only() -> None:
    with pytest.raises(MixerError, match="only values can be mixed; set it to 'value'"):
        built(ZooCase("depth_attention", {"mixes": "key_value"}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "mla"}, "attention mla needs its sizes: mla with kv_lora_rank, "),
        ({"mla": SIZES}, "mla is set, but attention is gqa"),
        ({**MLA, "num_kv_heads": 1}, "num_kv_heads has no meaning with attention mla; remove it"),
        ({**MLA, "qk_norm": False}, "qk_norm has no meaning with attention mla; remove it"),
        ({**MLA, "mla": {**SIZES, "qk_rope_head_dim": 3}}, "qk_rope_head_dim 3 is odd"),
    ],
)
def test_wrong_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(
            {"hidden_size": 16, "intermediate_size": 8, "num_layers": 2, "num_heads": 3, **fields}
        )
