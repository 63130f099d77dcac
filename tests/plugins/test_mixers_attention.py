"""value_residual, value_embedding, lime and moda: what they start as, what they hold, and whom they refuse."""

from __future__ import annotations

from math import cos, sin
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

import zoo
from mixerzoo import AttentionCall, Context, Decoder, MixerError
from mixerzoo.testing.observe import observed, state_bytes

MIXERS = ("value_residual", "value_embedding", "lime", "moda")
#: The settings at which a mixer starts as the plain decoder.
NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("value_residual", {"weights": "fixed", "first": 0.0, "own": 1.0}),
    ("value_residual", {"weights": "learned", "first": 0.0, "own": 1.0, "gate": True}),
    ("value_embedding", {"every": 1}),
    ("value_embedding", {"every": 3, "gate": False}),
    ("lime", {}),
]


def logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        found: Tensor = decoder(zoo.some_tokens(2, 5))
    return found


def kept(decoder: Decoder) -> dict[int, tuple[Tensor, Tensor]]:
    """Step → the keys and values [B, G, T, d] that a cache is given."""
    cache = decoder.new_cache(2)
    found: dict[int, Any] = {}
    append = cache.append

    def recording(slot: int, k: Tensor | None, v: Tensor | None) -> Any:
        found[slot] = k, v
        return append(slot, k, v)

    cache.append = recording  # type: ignore[method-assign]
    with torch.no_grad():
        decoder(zoo.some_tokens(2, 5), cache)
    return found


@pytest.mark.parametrize(("mixer", "options"), NEUTRAL, ids=str)
@given(model=zoo.models())
def test_neutral_settings_are_the_plain_decoder(mixer: str, options: dict[str, Any], model: dict[str, Any]) -> None:
    ours, plain = (zoo.initial(name, chosen, **model) for name, chosen in ((mixer, options), ("residual", {})))
    assert torch.equal(logits(ours), logits(plain))


@pytest.mark.parametrize("mixer", MIXERS)
def test_one_layer_has_nobody_to_read(mixer: str) -> None:
    options = {"every": 1, "gate": False} if mixer == "value_embedding" else {}
    ours, plain = (zoo.initial(name, chosen, num_layers=1) for name, chosen in ((mixer, options), ("residual", {})))
    assert torch.equal(logits(ours), logits(plain))
    if mixer != "value_embedding":
        assert ours.num_parameters()[1] == 0


@pytest.mark.parametrize("case", [case for case in zoo.REGISTERED_CASES if case.mixer in MIXERS], ids=str)
@torch.no_grad()
def test_the_peak_in_flight_is_reached_and_the_end_holds_the_stream_alone(case: zoo.ZooCase) -> None:
    decoder = zoo.make(case, dtype=torch.float32)
    with observed(decoder.mixer) as calls:
        decoder(zoo.some_tokens(2, 3))
    held = state_bytes(calls)
    assert max(held) == 2 * 3 * decoder.mixer.in_flight_bytes(torch.float32)
    last = max(number for number, call in enumerate(calls.made) if call.state is not None)
    assert held[last] == 2 * 3 * 4 * decoder.shape.hidden_size


@pytest.mark.parametrize("mixer", MIXERS)
def test_shared_keys_and_values_are_refused(mixer: str) -> None:
    of = [{"name": "cla"}, {"name": mixer}]
    with pytest.raises(MixerError, match=r"needs each layer's own keys and values, but steps \[1, 3\] borrow theirs"):
        zoo.build("compose", {"of": of}, {})


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_composition_with_the_plain_stream_is_the_mixer_itself(mixer: str) -> None:
    alone, composed = zoo.build(mixer, {}, {}), zoo.build("compose", {"of": [{"name": mixer}]}, {})
    zoo.perturb(alone)
    prefix = "model.mixer."
    state = {
        f"{prefix}parts.{mixer}.{name.removeprefix(prefix)}" if name.startswith(prefix) else name: tensor
        for name, tensor in alone.state_dict().items()
    }
    composed.load_state_dict(state)
    assert torch.equal(logits(composed), logits(alone))


# Value residual.


def test_learned_weights_start_where_fixed_ones_stay() -> None:
    options = {"first": 2.0, "own": 0.75}
    learned, fixed = (
        logits(zoo.initial("value_residual", {"weights": weights, **options})) for weights in ("learned", "fixed")
    )
    assert torch.equal(learned, fixed)


def test_the_gate_starts_open() -> None:
    with_gate, without = (logits(zoo.initial("value_residual", {"gate": gate})) for gate in (True, False))
    assert torch.equal(with_gate, without)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 2 * 3),
        ({"gate": True}, (2 + 2) * 3),
        ({"weights": "fixed"}, 0),
        ({"weights": "fixed", "gate": True}, 2 * 3),
    ],
)
def test_parameters_of_value_residual(options: dict[str, Any], expected: int) -> None:
    assert zoo.build("value_residual", options, {}).num_parameters()[1] == expected


def test_a_gate_on_nothing_is_refused() -> None:
    with pytest.raises(MixerError, match="the gate scales the first layer's value, which has weight 0 for good; set"):
        zoo.build("value_residual", {"weights": "fixed", "first": 0.0, "gate": True}, {})


# Value embeddings.


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [1, 5]), (5, [0, 5]), (9, [5])]
)
def test_tables_are_counted_back_from_the_last_layer(every: int, steps: list[int]) -> None:
    decoder = zoo.build("value_embedding", {"every": every, "gate_channels": 3}, {"num_layers": 6})
    assert sorted(map(int, decoder.mixer.tables)) == sorted(map(int, decoder.mixer.gates)) == steps
    assert decoder.num_parameters()[1] == len(steps) * (zoo.VOCAB_SIZE * 2 * 6 + 2 * 3)


def test_a_token_reads_its_own_row_alone() -> None:
    decoder = zoo.make(zoo.ZooCase("value_embedding", {"every": 4, "gate": False}))
    before, tokens = kept(decoder)[3][1], zoo.some_tokens(2, 5)
    token = int(tokens[0, 2])
    with torch.no_grad():
        decoder.mixer.tables["3"][token] += 1
    changed = (kept(decoder)[3][1] - before).transpose(1, 2).flatten(2)
    zoo.assert_close(changed, (tokens == token).double()[..., None].expand_as(changed), 1e-12)


def test_the_gates_of_value_embeddings_start_at_one() -> None:
    gated, plain = (
        logits(zoo.initial("value_embedding", {"gate": gate, "initial": "normal"})) for gate in (True, False)
    )
    assert torch.equal(gated, plain)


def test_tables_are_drawn_like_the_decoder_s_weights() -> None:
    sizes = {"vocab_size": 500, "init_std": 0.25}
    table = zoo.build("value_embedding", {"initial": "normal"}, sizes).mixer.tables["3"].detach()
    assert float(table.std()) == pytest.approx(0.25, rel=0.05)
    assert abs(float(table.mean())) < 0.02


def test_embeddings_without_ids_are_refused() -> None:
    mixer = zoo.build("value_embedding", {}, {}).mixer
    with pytest.raises(MixerError, match="looks tokens up by their ids"):
        mixer.start(torch.zeros(1, 1, 16, dtype=torch.float64), Context(None))


# LIMe.


@pytest.mark.parametrize("layers", [2, 6])
def test_parameters_of_lime(layers: int) -> None:
    decoder = zoo.build("lime", {}, {"num_layers": layers})
    assert decoder.num_parameters()[1] == 2**2 * (layers * (layers + 1) // 2 - 1)


def test_the_published_start_is_uniform_over_earlier_layers() -> None:
    router = zoo.build("lime", {"initial": "uniform"}, {"num_layers": 8, "num_heads": 8, "num_kv_heads": 8}).mixer
    weights = router.routers["7"].detach()
    earlier, own = weights[:, :-8], weights[:, -8:]
    assert torch.equal(own, torch.eye(8, dtype=own.dtype))
    bound = (3 / 64) ** 0.5
    assert 0.9 * bound < float(earlier.abs().max()) <= bound
    assert float(earlier.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_sources_of_lime_are_raw() -> None:
    decoder = zoo.make(zoo.ZooCase("lime"))
    heads = decoder.shape.num_kv_heads
    raw = kept(decoder)[0][1]
    with torch.no_grad():
        # Layer 1 doubles what layer 0 projects; layer 2 reads layer 0 and is to see no more of that.
        for router in decoder.mixer.routers.values():
            router.zero_()
            router[:, :heads].copy_(torch.eye(heads))
        decoder.mixer.routers["1"].mul_(2)
    values = [v for _, v in kept(decoder).values()]
    for v, times in zip(values, (1, 2, 1, 1), strict=True):
        zoo.assert_close(v, times * raw, 1e-12)


# MoDA.


def test_moda_on_one_layer_keeps_the_attention_backend() -> None:
    assert "depth_kv" in zoo.build("moda", {}, {}).plan.hooks
    assert "depth_kv" not in zoo.build("moda", {}, {"num_layers": 1}).plan.hooks


@pytest.mark.parametrize("layers", [2, 5])
def test_parameters_of_moda(layers: int) -> None:
    built = [zoo.build("moda", {"mlp": mlp}, {"num_layers": layers}).num_parameters()[1] for mlp in (True, False)]
    assert built == [(2 * 2 * 6 * 16 + 6) * (layers - 1), 0]


@torch.no_grad()
def test_scores_along_depth_do_not_depend_on_the_position() -> None:
    """One token alone, at positions far apart: the sequence offers itself only, the rest is depth."""
    decoder = zoo.make(zoo.ZooCase("moda"))
    tokens = zoo.some_tokens(1, 6)
    alone = decoder(tokens[:, -1:])
    documents = torch.tensor([[0, 0, 0, 0, 0, 1]])
    zoo.assert_close(decoder(tokens, documents=documents)[:, -1:], alone, 1e-12)
    mixer = decoder.mixer
    k = torch.randn(1, 2, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.randn(1, 4, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = mixer.start(torch.zeros(1, 1, 16, dtype=torch.float64), Context(tokens[:, :1]))
    sites = mixer.shape.sites()
    stream = torch.zeros(1, 1, 16, dtype=torch.float64)
    state, _, _ = mixer.mix_kv(state, AttentionCall(sites[0], stream, stream, q, k, k, lambda x: x))
    for site in sites[:2]:
        state = mixer.write(state, site, torch.ones(1, 1, 16, dtype=torch.float64))
    scores = []
    for angle in (0.0, 1.3):

        def rotate(x: Tensor, angle: float = angle) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            turned = [first * cos(angle) - second * sin(angle), second * cos(angle) + first * sin(angle)]
            return torch.cat(turned, dim=-1)

        call = AttentionCall(sites[2], stream, stream, rotate(q), k, k, rotate)
        keys, _ = mixer.depth_kv(mixer.mix_kv(state, call)[0], call).each()
        assert [key.shape for key in keys] == [(1, 2, 1, 6)] * 2
        # The attention's key has its RoPE already, and is left as it is; the MLP's is turned with the query.
        assert keys[0] is k
        scores.append((rotate(q)[:, ::2] * keys[1]).sum(-1))
    zoo.assert_close(scores[0], scores[1], 1e-12)
