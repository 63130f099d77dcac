"""Compositions: what each part owns, and what cannot be joined."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

import zoo
from mixerzoo import Context, MixerError, RecipeError, load_recipe
from mixerzoo.mixer import check_choice
from mixerzoo.testing import CHECKS, Case, rerun, run_check

STREAMS = [name for name in zoo.REGISTERED if zoo.mixer_class(name).card.family in ("streams", "depth-weighted")]


def composed(*parts: dict[str, Any], **model: Any) -> Any:
    """A composition's perturbed decoder."""
    return zoo.perturb(zoo.build("compose", {"of": list(parts)}, model))


@torch.no_grad()
def test_one_part_alone_is_that_mixer() -> None:
    tokens = zoo.some_tokens(2, 6)
    for name in ("denseformer", "depth_attention", "svformer", "cla", "yoco"):
        alone = zoo.build(name, {}, {})
        decoder = zoo.build("compose", {"of": [{"name": name}]}, {})
        state = {key.replace("mixer.", f"mixer.parts.{name}."): value for key, value in alone.state_dict().items()}
        decoder.load_state_dict(state)
        assert torch.equal(decoder(tokens), alone(tokens))
        assert decoder.plan == alone.plan
        assert decoder.mixer.in_flight_bytes(torch.float32) == alone.mixer.in_flight_bytes(torch.float32)
        assert decoder.mixer.flops_per_token() == alone.mixer.flops_per_token()


@pytest.mark.parametrize("part", ["cla", "fusedkv", "fusedkv_lite", "svformer", "yoco"])
def test_the_card_of_a_composition_has_the_cache_that_a_part_plans(part: str) -> None:
    of = [{"name": part}, {"name": "denseformer"}]
    planned, plain = composed(*of), composed({"name": "denseformer"})
    assert planned.mixer.card.kv_bytes != plain.mixer.card.kv_bytes == zoo.mixer_class("compose").card.kv_bytes
    rerun("kv_bytes", zoo.mixer_class("compose"), Case(dict(zoo.MODEL), {"of": of}))


@pytest.mark.parametrize(
    "of",
    [
        # It shows the stream beside its sources.
        [{"name": "delta_attn_res"}, {"name": "depth_attention"}],
        # Streams have no names; there are as many as the other part has sources.
        [{"name": "hyper_connections", "num_streams": 2}, {"name": "value_residual"}],
        # Values do not have the latest output in them.
        [{"name": "ladder"}, {"name": "value_residual"}],
    ],
    ids=str,
)
def test_sources_of_a_part_have_the_names_that_it_gives_them(of: list[dict[str, Any]]) -> None:
    result = run_check(CHECKS["source_names"], zoo.mixer_class("compose"), overrides={"of": st.just(of)})
    assert result.ok, result.message
    assert result.ran


def test_streams_have_no_names_in_a_composition() -> None:
    decoder = composed({"name": "hyper_connections", "num_streams": 2}, {"name": "value_residual"})
    site = decoder.shape.sites()[2]
    assert len(decoder.mixer.sources(site)) == 2
    state = decoder.mixer.start(
        torch.zeros(1, 1, decoder.shape.hidden_size, dtype=torch.float64), Context(zoo.some_tokens(1, 1))
    )
    shown = decoder.mixer.mixing_weights(state, site)
    assert shown.named(decoder.mixer.sources(site)) is None


@torch.no_grad()
def test_with_a_neutral_stream_it_is_the_other_part() -> None:
    tokens = zoo.some_tokens(2, 6)
    alone = zoo.build("depth_attention", {"stride": 1}, {})
    decoder = zoo.build("compose", {"of": [{"name": "denseformer"}, {"name": "depth_attention", "stride": 1}]}, {})
    assert torch.equal(decoder(tokens), alone(tokens))


@torch.no_grad()
def test_order_makes_no_difference() -> None:
    tokens = zoo.some_tokens(2, 6)
    parts = [{"name": "attn_res"}, {"name": "depth_attention"}]
    first, second = (zoo.build("compose", {"of": list(order)}, {}) for order in permutations(parts))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(tokens), first(tokens))


@torch.no_grad()
def test_a_part_that_looks_at_the_stream_sees_what_the_sublayer_reads() -> None:
    tokens = zoo.some_tokens(2, 6)
    for name in ("moda", "value_embedding"):
        alone = zoo.perturb(zoo.build(name, {}, {}))
        for stream in ([], [{"name": "residual"}]):
            decoder = zoo.build("compose", {"of": [*stream, {"name": name}]}, {})
            state = {key.replace("mixer.", f"mixer.parts.{name}."): value for key, value in alone.state_dict().items()}
            decoder.load_state_dict(state)
            assert torch.equal(decoder(tokens), alone(tokens))


@pytest.mark.parametrize("stream", STREAMS)
@torch.no_grad()
def test_every_stream_mixer_joins_depth_attention(stream: str) -> None:
    decoder = composed({"name": stream}, {"name": "depth_attention"})
    tokens = zoo.some_tokens(2, 7)
    cache = decoder.new_cache(2)
    pieces = [decoder(piece, cache) for piece in torch.split(tokens, [3, 1, 3], dim=1)]
    zoo.assert_close(torch.cat(pieces, dim=1), decoder(tokens))
    vanilla = zoo.build("residual", {}, {})
    assert decoder.new_cache(1).bytes_per_token == vanilla.new_cache(1).bytes_per_token


def test_a_gate_on_the_normed_input_sees_that_of_the_values_where_inputs_are_separate() -> None:
    model = {"num_layers": 3, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2}
    case = Case(model, {"of": [{"name": "dca"}, {"name": "satformer"}]}, chunks=(3,))
    rerun("reference_logits", zoo.mixer_class("compose"), case, zoo.reference("compose"))


def test_a_part_that_plans_the_cache_plans_the_composition_s() -> None:
    decoder = composed({"name": "denseformer"}, {"name": "cla", "group": 2})
    assert decoder.plan == zoo.build("cla", {"group": 2}, {}).plan


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["denseformer", "attn_res"], "'denseformer' and 'attn_res' each mix the residual stream; keep one"),
        (["depth_attention", "value_residual"], "each define keys and values before the cache write; keep one"),
        (["cla", "svformer"], "'cla' and 'svformer' each define the plan of layers and cache slots"),
        (["cla", "depth_attention"], "needs each layer's own keys and values, but steps"),
    ],
)
def test_what_cannot_be_joined_is_refused(parts: list[str], message: str) -> None:
    with pytest.raises(MixerError, match=message):
        composed(*({"name": name} for name in parts))


@pytest.mark.parametrize("method", ["start", "read", "write", "finish"])
def test_a_part_inside_attention_that_mixes_the_stream_too_is_refused(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = zoo.mixer_class("depth_attention")
    composed({"name": "depth_attention"})
    monkeypatch.setattr(kind, method, lambda self, *given: getattr(super(kind, self), method)(*given))
    with pytest.raises(MixerError, match=f"acts inside attention and defines {method} of the residual"):
        composed({"name": "depth_attention"})


@pytest.mark.parametrize("name", ["lime", "moda", "satformer", "value_embedding", "value_residual"])
def test_what_needs_keys_and_values_of_its_own_says_so(name: str) -> None:
    with pytest.raises(MixerError, match="needs each layer's own keys and values"):
        composed({"name": "cla", "group": 2}, {"name": name})


def test_what_the_names_forbid_is_refused_before_any_part_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(value: Any) -> Any:
        raise AssertionError(value)

    nested: dict[str, Any] = {"name": "residual"}
    for _ in range(12):
        nested = {"name": "compose", "of": [nested, nested]}
    config = zoo.mixer_class("compose").Config
    monkeypatch.setattr("mixerzoo.mixer.choice.check_choice", looked)
    with pytest.raises(ValueError, match="a composition cannot contain a composition"):
        config(of=nested["of"])
    with pytest.raises(ValueError, match="'value_residual' is listed twice"):
        config(of=[{"name": "value_residual"}] * 30)


def test_only_so_many_parts_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr("mixerzoo.mixer.choice.check_choice", lambda value: looked.append(value) or [])
    with pytest.raises(ValueError, match="of 3,000 mixers is too long"):
        zoo.mixer_class("compose").Config(of=[{"name": f"none_{number}"} for number in range(3000)])
    assert looked == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixer.of=[]", r"mixer\.of: list at least one mixer"),
        ("mixer.of=[{name: denseformr}]", r"mixer\.of\.0: .*did you mean 'denseformer'"),
        ("mixer.of=[{name: denseformer, perid: 2}]", r"mixer\.of\.0: .*perid.*did you mean 'period'"),
        ("mixer.of=denseformer", r"mixer\.of: expected a list"),
    ],
)
def test_wrong_recipes(override: str, message: str) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "small" / "compose.yaml"
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [override])


def test_choices_that_are_made_in_python_are_looked_at_as_well() -> None:
    choice, config = check_choice({"name": "value_residual"}), zoo.mixer_class("compose").Config
    with pytest.raises(ValueError, match="'value_residual' is listed twice"):
        config(of=[choice, choice])
