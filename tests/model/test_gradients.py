"""Gradients, neutral settings and initial weights of every mixer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from mixerzoo import Decoder, ops
from mixerzoo.errors import MixerError
from mixerzoo.model import EveryNth, Recompute
from mixerzoo.ops import forms
from zoo import ZooCase, assert_close, some_tokens

every_case = zoo.parametrized(zoo.CASES)


every_registered_case = zoo.parametrized(zoo.REGISTERED_CASES)


# Gradients.


def gradients_of(decoder: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """The gradients of the parameters that have one."""
    decoder.zero_grad()
    logits = decoder(tokens)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}


class _Accumulations(TorchDispatchMode):
    """The operations that several threads of a CPU do in no order, so that the last bits are others every time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.strip("_")
        if name in ("index_put", "index_put_impl", "put") and True in (*args[3:], *(kwargs or {}).values()):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@every_registered_case
def test_training_adds_nothing_up_in_whatever_order_threads_come(case: ZooCase) -> None:
    decoder = zoo.make(case)
    with _Accumulations() as found:
        gradients_of(decoder, some_tokens(2, 6))
    assert not found.seen


def test_additions_in_whatever_order_are_seen() -> None:
    table = torch.zeros(4, 2, requires_grad=True)
    with _Accumulations() as found:
        table[torch.tensor([1, 1])].sum().backward()
    assert found.seen


@every_case
def test_every_parameter_gets_a_gradient(case: ZooCase) -> None:
    decoder = zoo.make(case)
    gradients = gradients_of(decoder, some_tokens(2, 6))
    for name, _ in decoder.named_parameters():
        assert name in gradients
        assert gradients[name].isfinite().all(), name
        if case.options.get("dialect") == "snapshot" and name.startswith("model.mixer.queries.0."):
            # The first read weighs the embedding against itself.
            assert gradients[name].abs().max() < 1e-12, name
        elif case.options.get("variant") == "mhc" and name.endswith(("connections.0.mix", "connections.0.scale_mix")):
            # The streams are alike, and the stream matrix changes them by what Sinkhorn leaves of its row sums.
            assert gradients[name].abs().max() < 1e-3, name
        else:
            assert gradients[name].abs().max() > 1e-9, name


@every_case
def test_activation_checkpointing_gives_the_same_gradients(case: ZooCase) -> None:
    decoder, tokens = zoo.make(case), some_tokens(2, 6)
    plain = gradients_of(decoder, tokens)
    runs: list[int] = []
    decoder.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(0))
    decoder.model.activation_checkpointing = "layers"
    if decoder.plan.is_sequential:
        with pytest.raises(MixerError, match=r"slot in turn.*set train\.activation_checkpointing to none"):
            gradients_of(decoder, tokens)
        return
    recomputed = gradients_of(decoder, tokens)
    # Each run of the layer happens twice: forward, and again for the backward.
    assert len(runs) == 2 * decoder.plan.order.count(0)
    assert recomputed.keys() == plain.keys()
    for name, gradient in recomputed.items():
        assert_close(gradient, plain[name], 1e-12)


@pytest.mark.parametrize("mode", [EveryNth(every=2), "selective"], ids=str)
@pytest.mark.parametrize("mixer", ["smear", "attn_res", "depth_attention"])
def test_less_may_be_computed_again(mixer: str, mode: Recompute) -> None:
    decoder, tokens = zoo.make(ZooCase(mixer, {}, zoo.LOOPED)), some_tokens(2, 6)
    plain = gradients_of(decoder, tokens)
    runs: list[int] = []
    for layer in decoder.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(0))
    decoder.model.activation_checkpointing = mode
    with _Products() as counted:
        recomputed = gradients_of(decoder, tokens)
    steps = len(decoder.plan.order)
    assert len(runs) == (2 * steps if mode == "selective" else steps + -(-steps // 2))
    for name, gradient in recomputed.items():
        assert_close(gradient, plain[name], 1e-12)
    if mode == "selective":
        decoder.model.activation_checkpointing = "none"
        with _Products() as without:
            gradients_of(decoder, tokens)
        # The forward's products are not computed again.
        assert counted.number == without.number


@pytest.mark.parametrize("mixer", ["moda", "lime"])
def test_selective_keeps_linear_layers_and_attention_in_a_mixer_too(mixer: str) -> None:
    decoder, tokens = zoo.make(ZooCase(mixer)), some_tokens(2, 6)
    counted = []
    for mode in ("none", "selective"):
        decoder.model.activation_checkpointing = mode
        with forms.forced("fused"), _Products() as products:
            gradients_of(decoder, tokens)
        counted.append(products)
    without, again = counted
    assert without.number == again.number > 0
    assert without.nodes == again.nodes
    assert bool(without.nodes) == (mixer == "moda")


class _Products(TorchDispatchMode):
    """Counts products of matrices, and nodes of ours that take as long."""

    number = nodes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten.mm.default
        self.nodes += func in ops.PRODUCTS
        return func(*args, **(kwargs or {}))


@every_registered_case
def test_gradients_are_those_of_finite_differences(case: ZooCase) -> None:
    """Along one direction in the space of all parameters."""
    decoder, tokens = zoo.make(case), some_tokens(1, 4)
    parameters = list(decoder.parameters())
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def value(step: float) -> float:
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=step)
            result = float(decoder(tokens).logsumexp(-1).sum())
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.sub_(along, alpha=step)
        return result

    decoder(tokens).logsumexp(-1).sum().backward()
    slope = sum(float((p.grad * along).sum()) for p, along in zip(parameters, direction, strict=True))
    near, far = ((value(h) - value(-h)) / (2 * h) for h in (1e-5, 2e-5))
    # Richardson: the error of a central difference is quadratic in its step.
    assert (4 * near - far) / 3 == pytest.approx(slope, rel=1e-7, abs=1e-7)


# Neutral settings.


def moved_beside_the_mixer(decoder: Decoder) -> Decoder:
    """Perturb all but the mixer."""
    return zoo.perturb(decoder, mixer_too=False)


@given(model=zoo.models(num_layers=1, loop=zoo.NO_LOOP), options=zoo.OPTIONS["depth_attention"])
@torch.no_grad()
def test_one_layer_of_depth_attention_is_residual_bit_for_bit(model: dict[str, Any], options: dict[str, Any]) -> None:
    tokens = some_tokens(2, 5)
    ours, plain = zoo.build("depth_attention", options, model), zoo.build("residual", {}, model)
    assert torch.equal(ours(tokens), plain(tokens))
    assert torch.equal(moved_beside_the_mixer(ours)(tokens), moved_beside_the_mixer(plain)(tokens))


@given(model=zoo.models(), options=zoo.OPTIONS["denseformer"])
@torch.no_grad()
def test_denseformer_is_residual_bit_for_bit_at_initialisation(model: dict[str, Any], options: dict[str, Any]) -> None:
    tokens = some_tokens(2, 5)
    ours, plain = zoo.build_drawn("denseformer", options, model), zoo.build("residual", {}, model)
    assert torch.equal(ours(tokens), plain(tokens))
    assert torch.equal(moved_beside_the_mixer(ours)(tokens), moved_beside_the_mixer(plain)(tokens))


@pytest.mark.parametrize("model", [{}, zoo.LOOPED], ids=["plain", "looped"])
@torch.no_grad()
def test_attn_res_is_residual_up_to_eps_at_initialisation(model: dict[str, Any]) -> None:
    """The mean of n sources in place of their sum: RMSNorm divides n out but for its eps.

    norm(s/n) = s/√(mean(s²) + n²·eps), so the difference is linear in eps.
    """
    tokens = some_tokens(2, 5)

    def difference(eps: float) -> float:
        ours = zoo.build("attn_res", {}, {**model, "norm_eps": eps})
        plain = zoo.build("residual", {}, {**model, "norm_eps": eps})
        return float((moved_beside_the_mixer(ours)(tokens) - moved_beside_the_mixer(plain)(tokens)).abs().max())

    assert difference(1e-12) < 1e-8
    assert difference(1e-5) < 2e-2
    assert difference(1e-7) / difference(1e-8) == pytest.approx(10, rel=0.01)


# Weights.


@every_registered_case
def test_weights_depend_on_the_seed_alone(case: ZooCase) -> None:
    built = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        built.append(zoo.make(case, perturbed=False).state_dict())
        assert torch.equal(before, torch.get_rng_state())
    assert built[0].keys() == built[1].keys()
    for name, tensor in built[0].items():
        assert torch.equal(tensor, built[1][name]), name
        assert not tensor.isnan().any(), name
    other = zoo.build(case.mixer, case.options, case.model, seed=1)
    assert not torch.equal(other.lm_head.weight, built[0]["lm_head.weight"])


@every_case
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_decoder_s_weights_do_not_depend_on_the_mixer(case: ZooCase, tied: bool) -> None:
    def weights_beside_the_mixer(decoder: Decoder) -> dict[str, Tensor]:
        return {n: t for n, t in decoder.state_dict().items() if not n.startswith("model.mixer.")}

    ours = weights_beside_the_mixer(zoo.make(case, perturbed=False, tie_embeddings=tied))
    plain = weights_beside_the_mixer(
        zoo.make(ZooCase("residual", model=case.model), perturbed=False, tie_embeddings=tied)
    )
    # A layer that borrows keys or values has no projection for them.
    missing = plain.keys() - ours.keys()
    assert all(name.split(".")[-2] in ("k_proj", "k_norm", "v_proj") for name in missing)
    for name, tensor in ours.items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize("case", zoo.PLAIN_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_drawn_in_float32(case: ZooCase, dtype: torch.dtype) -> None:
    exact = zoo.make(case, dtype=torch.float32, perturbed=False).state_dict()
    for name, tensor in zoo.make(case, dtype=dtype, perturbed=False).state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[name].to(dtype)), name


@pytest.mark.parametrize("case", zoo.PLAIN_CASES, ids=str)
def test_a_tied_head_is_the_embedding(case: ZooCase) -> None:
    decoder = zoo.make(case, perturbed=False, tie_embeddings=True)
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    assert not decoder.lm_head.weight.isnan().any()
    untied = zoo.make(case, perturbed=False)
    assert untied.num_parameters()[0] - decoder.num_parameters()[0] == untied.lm_head.weight.numel()
    assert decoder.num_parameters() == (
        sum(p.numel() for n, p in decoder.named_parameters() if not n.startswith("model.mixer.")),
        sum(p.numel() for p in decoder.mixer.parameters()),
    )
