"""Mixers of the residual stream: what each claims of itself, and what it refuses."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from golden_cases import golden, naive_traces
from mixerzoo import (
    Decoder,
    Mixer,
    MixerConfig,
    MixerError,
    ModelConfig,
    load_checkpoint,
    load_registry,
    ops,
    save_checkpoint,
)
from mixerzoo.mixer import MixerChoice, check_choice
from mixerzoo_plugins.hyper_connections import MAX_LITE_STREAMS, mean_of_permutations, product_of_swaps
from naive import hyper_connections as naive
from zoo import assert_close, some_tokens

DEPTHS = (1, 2, 3, 6)
every_depth = pytest.mark.parametrize("num_layers", DEPTHS)


def initial(mixer: str, options: dict[str, Any], **model: Any) -> Decoder:
    """A decoder whose mixer is as initialised and whose other weights are not."""
    return zoo.perturb(zoo.build(mixer, options, model), mixer_too=False)


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


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("num_streams", [1, 2, 3, 4])
@torch.no_grad()
def test_every_hc_stream_starts_as_the_residual_one_bit_for_bit(dynamic: bool, num_streams: int) -> None:
    tokens = some_tokens(2, 7)
    options = {"variant": "hc", "dynamic": dynamic, "num_streams": num_streams}
    ours, plain = initial("hyper_connections", options), initial("residual", {})
    states: dict[str, list[Tensor]] = {"ours": [], "plain": []}
    for name, decoder in (("ours", ours), ("plain", plain)):
        finish, read = decoder.mixer.finish, decoder.mixer.read

        def reading(state: Tensor, site: Any, seen: list[Tensor] = states[name], read: Any = read) -> Tensor:
            seen.append(state)
            return read(state, site)

        def finishing(state: Tensor, seen: list[Tensor] = states[name], finish: Any = finish) -> Tensor:
            seen.append(state)
            return finish(state)

        decoder.mixer.read, decoder.mixer.finish = reading, finishing  # type: ignore[method-assign]
        decoder(tokens)
    for streams, stream in zip(states["ours"], states["plain"], strict=True):
        assert torch.equal(streams, stream.unsqueeze(-2).expand_as(streams))
    # The head reads n times the stream; the final norm undoes that, but for its epsilon.
    assert_close(ours.mixer.finish(states["ours"][-1]), num_streams * states["plain"][-1], 1e-12)


@pytest.mark.parametrize(
    ("mixer", "variant"),
    [("hyper_connections", {"variant": "mhc"}), ("hyper_connections", {"variant": "mhc_lite"}), ("krom_hc", {})],
    ids=str,
)
@pytest.mark.parametrize("num_streams", [2, 4])
@torch.no_grad()
def test_constrained_hyper_connections_start_close_to_the_residual_decoder(
    mixer: str, variant: dict[str, Any], num_streams: int
) -> None:
    tokens = some_tokens(2, 7)
    options = {**variant, "num_streams": num_streams}
    expected = initial("residual", {}, norm_eps=1e-12)(tokens)

    def distance(options: dict[str, Any], alike: bool) -> float:
        decoder = initial(mixer, options, norm_eps=1e-12)
        if alike:
            # Without the part that depends on the token.
            for name, parameter in decoder.mixer.named_parameters():
                if name.endswith("projection"):
                    parameter.zero_()
        return float((decoder(tokens) - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    assert distance(options, alike=True) < 1e-6
    assert 0 < distance(options, alike=False) < 1e-2
    assert distance({**options, "alpha_init": 1.0}, alike=False) > distance(options, alike=False)


# Double stochasticity.


def spread(logits: Tensor) -> Tensor:
    """The diameter of K = exp(logits) [..., n, n] in Hilbert's metric: the greatest log (K_ij K_kl) / (K_il K_kj)."""
    rows = logits.unsqueeze(-2) - logits.unsqueeze(-3)  # [..., n, n, n]: row i less row k
    return (rows.amax(-1) - rows.amin(-1)).amax((-2, -1))


@pytest.mark.parametrize("num_streams", [2, 3, 4, 6])
@pytest.mark.parametrize("iterations", [1, 5, 20])
@pytest.mark.parametrize("std", [0.1, 0.5, 1.0, 2.0, 8.0])
def test_sinkhorn_is_doubly_stochastic_as_far_as_the_logits_allow(
    std: float, iterations: int, num_streams: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = std * torch.randn(500, num_streams, num_streams, generator=generator, dtype=torch.float64)
    # The clamp acts on what is 27 below the greatest; within that the bound is a theorem.
    logits = logits[(logits.amax((-2, -1)) - logits.amin((-2, -1))) < 27]
    matrix = ops.sinkhorn(logits, iterations)
    assert (matrix >= 0).all()
    assert_close(matrix.sum(-2), torch.ones(len(logits), num_streams), 1e-14)
    # Birkhoff: dividing the rows of a matrix, or its columns, brings the sums of the others closer to each other by
    # tanh(diameter / 4). The first division of rows leaves these column sums, the last of columns the row sums.
    sums = logits.softmax(-1).sum(-2).log()
    distance = (spread(logits) / 4).tanh() ** (2 * iterations - 1) * (sums.amax(-1) - sums.amin(-1))
    error = (matrix.sum(-1) - 1).abs().amax(-1)
    assert (error <= distance.expm1() + 1e-13).all()
    if std <= 0.5 and iterations == 20:
        assert error.max() < 1e-4
    if std == 8.0:
        assert error.max() > 1e-2


def test_sinkhorn_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [1e4, 1e4]])
    assert ops.sinkhorn(logits, 20).isfinite().all()
    assert_close(ops.sinkhorn(torch.zeros(3, 3), 1), torch.full((3, 3), 1 / 3), 1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_mean_of_permutations(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    permutations = list(itertools.permutations(range(size)))
    for logit_std in (1.0, 100.0):
        logits = logit_std * torch.randn(3, 2, len(permutations), generator=generator, dtype=torch.float64)
        weights = logits.softmax(-1)
        matrix = mean_of_permutations(weights, size)
        expected = torch.zeros(3, 2, size, size, dtype=torch.float64)
        for k, permutation in enumerate(permutations):
            expected += weights[..., k, None, None] * torch.eye(size, dtype=torch.float64)[list(permutation)]
        assert_close(matrix, expected, 1e-15)
        for sums in (matrix.sum(-1), matrix.sum(-2)):
            assert_close(sums, torch.ones_like(sums), 1e-14)


@pytest.mark.parametrize("num_factors", [1, 2, 3])
def test_the_product_of_swaps(num_factors: int) -> None:
    generator = torch.Generator().manual_seed(0)
    identity, swap = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64).flip(0)
    for logit_std in (1.0, 100.0):
        logits = logit_std * torch.randn(3, num_factors, 2, generator=generator, dtype=torch.float64)
        weights = logits.softmax(-1)
        matrices = product_of_swaps(weights)
        for row, matrix in zip(weights, matrices, strict=True):
            expected = torch.ones(1, 1, dtype=torch.float64)
            for keep, exchange in row:
                expected = torch.kron(expected, keep * identity + exchange * swap)
            assert_close(matrix, expected, 1e-15)
        for sums in (matrices.sum(-1), matrices.sum(-2)):
            assert_close(sums, torch.ones_like(sums), 1e-14)


@pytest.mark.parametrize(
    ("mixer", "options", "tolerance"),
    [
        ("hyper_connections", {"variant": "mhc", "num_streams": 3}, 1e-2),
        ("hyper_connections", {"variant": "mhc_lite", "num_streams": 3}, 1e-13),
        ("krom_hc", {"num_streams": 4}, 1e-13),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_streams_of_a_decoder_keep_their_sum(mixer: str, options: dict[str, Any], tolerance: float) -> None:
    """Doubly stochastic matrices change no sum over streams: with post 0 the mean stream never moves."""
    decoder = zoo.make(zoo.ZooCase(mixer, options))
    generator = torch.Generator().manual_seed(0)
    streams = torch.randn(2, 5, options["num_streams"], 16, generator=generator, dtype=torch.float64)
    for site in decoder.shape.sites()[1:]:
        mixed = decoder.mixer.write(streams, site, torch.zeros(2, 5, 16, dtype=torch.float64))
        assert not torch.allclose(mixed, streams)
        # Column sums are exact in both, so the sum is kept; rows keep the mean in its place.
        assert_close(mixed.sum(-2), streams.sum(-2), 1e-12)
        alike = streams[..., :1, :].expand_as(streams)
        kept = decoder.mixer.write(alike, site, torch.zeros(2, 5, 16, dtype=torch.float64))
        assert_close(kept, alike, tolerance * float(alike.abs().max()))


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


# Checkpoints.


def test_an_mhc_checkpoint_is_read_with_its_options_and_saved_as_ours(tmp_path: Any) -> None:
    case = golden("mhc_n2")
    decoder = load_checkpoint(case.write(tmp_path / "theirs"), dtype=torch.float64)
    assert decoder.mixer.name == "hyper_connections"
    assert decoder.mixer.config.model_dump() == {
        "variant": "mhc",
        "num_streams": 2,
        "dynamic": True,
        "sinkhorn_iterations": 20,
        "alpha_init": 0.01,
    }
    save_checkpoint(decoder, tmp_path / "ours")
    again = load_checkpoint(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again(case.tokens), decoder(case.tokens))
        assert_close(decoder(case.tokens), case.logits("post_rope"), 1e-9)


def test_the_number_of_streams_has_two_keys_and_the_iterations_a_default(tmp_path: Any) -> None:
    case = golden("mhc_n2")
    config = {"mhc_num_streams": None, "mhc_sinkhorn_iters": None, "baseline_mode": None}
    decoder = load_checkpoint(case.write(tmp_path, config=config), dtype=torch.float64)
    with torch.no_grad():
        assert_close(decoder(case.tokens), case.logits("post_rope"), 1e-9)


def one_stream(case: Any) -> dict[str, Tensor]:
    """The tensors of a golden of two streams, cut to what a checkpoint of one stream holds."""
    cut = dict(case.tensors)
    for name, tensor in case.tensors.items():
        if name.endswith("mhc_dynamic_projection.weight"):
            size = tensor.size(1) // 2
            cut[name] = tensor[[0, 2, 4], :size].contiguous()  # pre, post and res of the first stream
        elif name.endswith("mhc_input_norm.weight"):
            cut[name] = tensor[: len(tensor) // 2].contiguous()
        elif name.endswith("residual_logits"):
            cut[name] = tensor[:1, :1].contiguous()
        elif name.endswith(("pre_logits", "post_logits", "reduce_logits")):
            cut[name] = tensor[:1].contiguous()
    return cut


def test_an_mhc_checkpoint_of_one_stream_is_read(tmp_path: Any) -> None:
    case = replace(golden("mhc_n2"), tensors=one_stream(golden("mhc_n2")))
    directory = case.write(tmp_path / "theirs", config={"mhc_num_streams": 1})
    decoder = load_checkpoint(directory, dtype=torch.float64)
    assert (decoder.mixer.config.variant, decoder.mixer.config.num_streams) == ("mhc", 1)  # type: ignore[attr-defined]
    # The naive reference is given the file's tensors, the logits of the stream matrix and of the head among them.
    config = {**case.config, "mhc_num_streams": 1}
    weights = {name: tensor.double() for name, tensor in case.tensors.items()}
    traces = naive_traces(case, "post_rope", naive.begin_checkpoint(config, weights))
    with torch.no_grad():
        logits = decoder(case.tokens)
        for row, trace in zip(logits, traces, strict=True):
            assert_close(row, trace.logits, 1e-9)
        save_checkpoint(decoder, tmp_path / "ours")
        assert torch.equal(load_checkpoint(tmp_path / "ours")(case.tokens), logits)


@torch.no_grad()
def test_one_constrained_stream_starts_close_to_the_residual_decoder() -> None:
    tokens = some_tokens(2, 7)
    decoder = initial("hyper_connections", {"variant": "mhc", "num_streams": 1})
    expected = initial("residual", {})(tokens)
    # What a sublayer reads is scaled by 0.99, which its norm undoes, and each output by 1.
    distance = (decoder(tokens) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < distance < 1e-2


def test_fewer_iterations_give_other_logits(tmp_path: Any) -> None:
    case = golden("mhc_n2")
    decoder = load_checkpoint(case.write(tmp_path, config={"mhc_sinkhorn_iters": 1}), dtype=torch.float64)
    with torch.no_grad():
        assert (decoder(case.tokens) - case.logits("post_rope")).abs().max() > 1e-3


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
