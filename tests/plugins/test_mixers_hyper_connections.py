"""hyper_connections and krom_hc: what they start as, matrices that are doubly stochastic, and checkpoints."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from golden_cases import golden, naive_traces
from mixerzoo import load_checkpoint, ops, save_checkpoint
from mixerzoo_plugins.hyper_connections import mean_of_permutations, product_of_swaps
from naive import hyper_connections as naive
from zoo import assert_close, initial, some_tokens

# The start.


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
