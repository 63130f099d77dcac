"""Mixers of the residual stream: what each claims of itself, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from mixerzoo import Decoder, Mixer, MixerConfig, MixerError, ModelConfig, load_registry
from mixerzoo.mixer import MixerChoice, check_choice
from mixerzoo_plugins.hyper_connections import MAX_LITE_STREAMS
from zoo import assert_close, initial, some_tokens

DEPTHS = (1, 2, 3, 6)
every_depth = pytest.mark.parametrize("num_layers", DEPTHS)


def parameters(mixer: str, options: dict[str, Any] | None = None, **model: Any) -> int:
    """How many the mixer adds."""
    return zoo.build(mixer, options or {}, model).num_parameters()[1]


def refusal(mixer: str, options: dict[str, Any], **model: Any) -> str:
    """What the mixer says when it refuses."""
    with pytest.raises(MixerError) as refused:
        zoo.build(mixer, options, model)
    return str(refused.value)


# The start.


NEUTRAL = [
    ("scaled_residual", {}),
    ("scaled_residual", {"weights": "vector"}),
    ("x0_lambda", {}),
    ("unet", {}),
    *(("laurel", {"variant": variant}) for variant in ("rw", "lr", "pa")),
    *(("laurel", {"variant": variant, "previous": "low_rank"}) for variant in ("pa", "rw+lr+pa")),
]


@pytest.mark.parametrize(("mixer", "options"), NEUTRAL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_depth
@torch.no_grad()
def test_starts_as_the_residual_decoder_bit_for_bit(
    mixer: str, options: dict[str, Any], dtype: torch.dtype, num_layers: int
) -> None:
    tokens = some_tokens(2, 7)
    ours, plain = (
        initial(name, o, num_layers=num_layers).to(dtype) for name, o in ((mixer, options), ("residual", {}))
    )
    assert torch.equal(ours(tokens), plain(tokens))


# Accounts.


@every_depth
def test_parameters(num_layers: int) -> None:
    sites, size = 2 * num_layers, 16
    model = {"num_layers": num_layers}

    def hyper(**options: Any) -> int:
        return parameters("hyper_connections", options, **model)

    assert parameters("scaled_residual", **model) == 2 * sites
    assert parameters("scaled_residual", {"weights": "vector"}, **model) == 2 * size * sites
    assert parameters("scaled_residual", {"gate": "highway"}, **model) == 2 * size * sites
    gated = {"gate": "highway", "weights": "vector", "gate_bias": 0.0}
    assert parameters("scaled_residual", gated, **model) == (2 * size * size + size) * sites
    assert parameters("x0_lambda", **model) == 2 * num_layers
    assert parameters("unet", **model) == num_layers // 2
    if num_layers >= 3:
        assert parameters("unet", {"backout": 0.2}, **model) == num_layers // 2 + 1
    assert parameters("laurel", {"variant": "rw+lr", "rank": 4}, **model) == (2 + 2 * 4 * size) * sites
    previous = sum(min(3, i + 1) for i in range(sites))
    assert parameters("laurel", {"variant": "pa"}, **model) == previous
    low_rank = {"variant": "pa", "previous": "low_rank", "rank": 4}
    assert parameters("laurel", low_rank, **model) == previous + 2 * 4 * size * sites
    n = 3
    assert hyper(num_streams=n, dynamic=False) == sites * n * (n + 2)
    assert hyper(num_streams=n) == sites * ((n + 2) * (n + size) + 2)
    logits = 2 * n + n * n
    assert hyper(num_streams=n, variant="mhc") == sites * ((logits + 1) * n * size + logits + 3) + n
    logits = 2 * n + math.factorial(n)
    without_first = math.factorial(n) * (n * size + 1) + 1
    expected = sites * ((logits + 1) * n * size + logits + 3) + n - without_first
    assert hyper(num_streams=n, variant="mhc_lite") == expected
    n, num_factors = 8, 3
    logits = 2 * n + 2 * num_factors
    without_first = 2 * num_factors * (n * size + 1) + 1
    expected = sites * ((logits + 1) * n * size + logits + 3) + n - without_first
    assert parameters("krom_hc", {"num_streams": n}, **model) == expected


@pytest.mark.parametrize(
    ("mixer", "options", "streams"),
    [
        ("scaled_residual", {"gate": "highway"}, 1),
        ("x0_lambda", {}, 2),
        ("unet", {}, 3),
        ("unet", {"backout": 0.2}, 3),
        ("laurel", {}, 1),
        ("laurel", {"variant": "pa"}, 3),
        ("laurel", {"variant": "pa", "num_previous": 99}, 12),
        *(("hyper_connections", {"variant": v, "num_streams": 5}, 5) for v in ("hc", "mhc", "mhc_lite")),
        ("krom_hc", {"num_streams": 8}, 8),
    ],
    ids=str,
)
def test_streams_in_flight_of_six_layers(mixer: str, options: dict[str, Any], streams: int) -> None:
    ours = zoo.build(mixer, options, {"num_layers": 6}).mixer
    assert ours.in_flight_bytes(torch.float32) == streams * 16 * 4
    assert ours.in_flight_bytes(torch.bfloat16) == streams * 16 * 2


@pytest.mark.parametrize("mixer", ["scaled_residual", "laurel", "x0_lambda", "unet", "hyper_connections", "krom_hc"])
@pytest.mark.parametrize("options", [{}], ids=["default"])
def test_the_cache_is_the_plain_one(mixer: str, options: dict[str, Any]) -> None:
    ours, plain = zoo.build(mixer, options, {}), zoo.build("residual", {}, {})
    assert ours.plan == plain.plan


def test_what_each_weighs_beside_the_stream() -> None:
    def read(mixer: str, options: dict[str, Any]) -> dict[int, list[int | None]]:
        """Number of a sublayer → of those whose outputs it weighs; None is the embedding."""
        ours = zoo.build(mixer, options, {"num_layers": 4}).mixer
        sites = ours.shape.sites()
        told = {i: [None if s is None else sites.index(s) for s in ours.sources(site)] for i, site in enumerate(sites)}
        return {i: sources for i, sources in told.items() if sources}

    assert read("hyper_connections", {}) == {}
    assert read("x0_lambda", {}) == {i: [None] for i in (0, 2, 4, 6)}
    assert read("unet", {"backout": 0.2}) == {4: [3], 6: [1], 7: [5]}
    assert read("laurel", {"variant": "rw+lr"}) == {}
    assert read("laurel", {"variant": "pa", "num_previous": 2}) == {
        0: [None],
        **{i: [i - 2 if i > 1 else None, i - 1] for i in range(1, 8)},
    }


# Methods among each other.


def with_values(decoder: Decoder, values: dict[str, Tensor]) -> Decoder:
    """The decoder with some of its mixer's parameters replaced."""
    with torch.no_grad():
        for name, value in values.items():
            decoder.mixer.get_parameter(name).copy_(value)
    return decoder


@torch.no_grad()
def test_one_hc_stream_is_a_scaled_residual() -> None:
    """With pre = 1, S ← res·S + post·u is h ← α·h + β·y."""
    tokens = some_tokens(2, 6)
    hc = initial("hyper_connections", {"num_streams": 1, "dynamic": False})
    scaled = initial("scaled_residual", {})
    for i in range(2 * hc.shape.num_steps):
        alpha, beta = torch.tensor([0.7 + 0.1 * i]), torch.tensor([1.3 - 0.2 * i])
        with_values(hc, {f"connections.{i}.mix": alpha, f"connections.{i}.post": beta})
        with_values(scaled, {f"alpha.{i}": alpha, f"beta.{i}": beta})
    assert_close(hc(tokens), scaled(tokens))


@torch.no_grad()
def test_laurel_rw_is_a_scaled_residual() -> None:
    tokens = some_tokens(2, 6)
    laurel, scaled = initial("laurel", {"variant": "rw"}), initial("scaled_residual", {})
    for i in range(2 * laurel.shape.num_steps):
        alpha, beta = torch.tensor([0.7 + 0.1 * i]), torch.tensor([1.3 - 0.2 * i])
        with_values(laurel, {f"weights.{i}": torch.cat([alpha, beta])})
        with_values(scaled, {f"alpha.{i}": beta, f"beta.{i}": alpha})
    assert_close(laurel(tokens), scaled(tokens))


@torch.no_grad()
def test_a_highway_that_is_shut_gives_the_embedding_and_one_that_is_open_the_last_output() -> None:
    tokens = some_tokens(2, 6)
    shut = initial("scaled_residual", {"gate": "highway", "gate_bias": -1e4})
    embedding = shut.model.embed_tokens(tokens)
    assert torch.equal(shut(tokens), shut.lm_head(shut.model.norm(embedding)))
    ours = initial("scaled_residual", {"gate": "highway", "gate_bias": 1e4}).mixer
    h, y = torch.randn(2, 1, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    assert torch.equal(ours.write(h, ours.shape.sites()[0], y), y)


@torch.no_grad()
def test_x0_lambdas_that_drop_the_stream_leave_the_last_layer_alone() -> None:
    """λ = (0, 1) before the last layer: what came before it is forgotten."""
    tokens = some_tokens(2, 6)
    deep = initial("x0_lambda", {}, num_layers=3)
    with_values(deep, {"residual_lambda": torch.tensor([1.0, 1.0, 0.0]), "x0_lambda": torch.tensor([0.0, 0.0, 1.0])})
    shallow = initial("residual", {}, num_layers=1)
    own = {n.replace("layers.2.", "layers.0."): p for n, p in deep.state_dict().items()}
    shallow.load_state_dict({name: own[name] for name in shallow.state_dict()})
    assert_close(deep(tokens), shallow(tokens))


# Refusals.


def test_refusals_say_what_would_be_right() -> None:
    said = refusal("hyper_connections", {"variant": "mhc_lite", "num_streams": MAX_LITE_STREAMS + 1})
    assert said == (
        "mhc_lite weighs all n! permutations of its streams, 720 for num_streams: 6; use at most 5 streams, "
        "or variant: mhc"
    )
    said = refusal("hyper_connections", {"variant": "mhc_lite", "num_streams": 1})
    assert said == "mhc_lite mixes streams with each other: num_streams must be at least 2"
    said = refusal("krom_hc", {"num_streams": 6})
    assert said == "krom_hc makes its matrix of 2 × 2 ones: num_streams must be a power of two, not 6"
    said = refusal("unet", {"backout": 0.2}, num_layers=2)
    assert said == (
        "backout subtracts the output of layer 2 at the end of a deeper decoder, and this one has 2; it needs at "
        "least 3 layers"
    )


@pytest.mark.parametrize(
    ("choice", "path", "words"),
    [
        (
            {"name": "attn_res", "recency_bias": 2.0},
            "recency_bias",
            "dialect kimi; leave it out, or set dialect to snapshot",
        ),
        (
            {"name": "hyper_connections", "sinkhorn_iterations": 3},
            "sinkhorn_iterations",
            "variant hc; leave it out, or set variant to mhc",
        ),
        (
            {"name": "hyper_connections", "variant": "mhc", "num_streams": 1, "sinkhorn_iterations": 3},
            "sinkhorn_iterations",
            "num_streams 1, whose matrix is 1; leave it out, or set more of them",
        ),
        (
            {"name": "hyper_connections", "variant": "mhc_lite", "dynamic": False},
            "dynamic",
            "variant mhc_lite, which is always dynamic; leave it out, or set variant to hc",
        ),
        (
            {"name": "hyper_connections", "dynamic": False, "alpha_init": 1.0},
            "alpha_init",
            "dynamic false; leave it out, or set dynamic to true",
        ),
        ({"name": "laurel", "variant": "lr", "bound": "softmax"}, "bound", "variant lr; leave it out, or choose"),
        (
            {"name": "laurel", "num_previous": 2},
            "num_previous",
            "variant rw+lr; leave it out, or choose a variant with",
        ),
        ({"name": "laurel", "previous": "low_rank"}, "previous", "variant rw+lr; leave it out, or choose a variant"),
        ({"name": "laurel", "variant": "pa", "rank": 2}, "rank", "variant pa and previous identity; leave it out, or"),
        ({"name": "scaled_residual", "gate_bias": 0.0}, "gate_bias", "gate none; leave it out, or set gate to highway"),
        (
            {"name": "value_embedding", "gate": False, "gate_channels": 3},
            "gate_channels",
            "gate false; leave it out, or set gate to true",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_an_option_without_a_meaning_is_refused_and_its_default_is_not(
    choice: dict[str, Any], path: str, words: str
) -> None:
    found = check_choice(choice)
    assert isinstance(found, list)
    (problem,) = found
    assert problem.message.startswith(f"{path} has no meaning with {words}")
    assert (path,) in problem.involved
    # As a checkpoint has it, which names every option.
    without = {key: value for key, value in choice.items() if key != path}
    written = check_choice(without)
    assert isinstance(written, MixerChoice)
    assert check_choice(written.model_dump()) == written


@pytest.mark.parametrize("num_streams", [2, MAX_LITE_STREAMS])
def test_what_is_not_refused_builds(num_streams: int) -> None:
    mixer: type[Mixer] = load_registry().get("hyper_connections").mixer
    config: MixerConfig = mixer.Config(variant="mhc_lite", num_streams=num_streams)  # type: ignore[call-arg]
    with torch.device("meta"):
        Decoder(ModelConfig(**zoo.MODEL), mixer, config)
