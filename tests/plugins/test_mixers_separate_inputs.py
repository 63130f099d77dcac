"""mudd and dca: what they start as, whom their ways read, what they hold, and whom they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from mixerzoo import AttentionInputs, Context, Mixer, Site
from mixerzoo.model import RMSNorm
from mixerzoo.model.attention import projection
from mixerzoo.ops import forms
from mixerzoo.testing.observe import observed, state_bytes

MIXERS = ("mudd", "dca")
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


@every_mixer
@given(data=st.data(), model=zoo.models())
@torch.no_grad()
def test_it_starts_as_the_plain_decoder(mixer: str, data: st.DataObject, model: dict[str, Any]) -> None:
    options = data.draw(zoo.OPTIONS[mixer], label="options")
    tokens = zoo.some_tokens(2, 5)
    ours, plain = (zoo.initial(name, chosen, **model) for name, chosen in ((mixer, options), ("residual", {})))
    assert torch.equal(ours(tokens), plain(tokens))


@pytest.mark.parametrize("case", [case for case in zoo.REGISTERED_CASES if case.mixer in MIXERS], ids=str)
@torch.no_grad()
def test_the_peak_in_flight_is_reached(case: zoo.ZooCase) -> None:
    decoder = zoo.make(case, dtype=torch.float32)
    with observed(decoder.mixer) as calls:
        decoder(zoo.some_tokens(2, 3))
    assert max(state_bytes(calls)) == 2 * 3 * decoder.mixer.in_flight_bytes(torch.float32)


def outputs(num_blocks: int, size: int) -> list[Tensor]:
    """What 2 · num_blocks sublayers give, [1, 1, size] each."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(2 * num_blocks, 1, 1, size, generator=generator, dtype=torch.float64))


@torch.no_grad()
def test_mudd_has_a_way_for_each_of_query_key_value_and_residual() -> None:
    mixer = zoo.build("mudd", {}, {}).mixer
    embedding, *rest = outputs(3, mixer.shape.hidden_size)
    state = mixer.start(embedding, Context(None))
    for site, y in zip(mixer.shape.sites()[:4], rest, strict=False):
        state = mixer.write(state, site, y)
    first, second = embedding + rest[0] + rest[1], embedding + rest[0] + rest[1] + rest[2] + rest[3]
    # After two blocks the sums run over the embedding, the first and the second block.
    weigher = mixer.mixes["2"]
    weigher.bias.copy_(torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=torch.float64))
    state = state._replace(weights=weigher(state.x))
    read = mixer.read(state, Site(2, 2, "attention"))
    assert isinstance(read, AttentionInputs)
    for ours, expected in zip(read, (embedding, first, second), strict=True):
        zoo.assert_close(ours, expected, 1e-12)
    written = mixer.write(state, Site(2, 2, "attention"), rest[4])
    zoo.assert_close(mixer.read(written, Site(2, 2, "mlp")), embedding + first + rest[4], 1e-12)


@pytest.mark.parametrize(("layers", "size", "expansion"), [(1, 8, 4), (6, 16, 4), (5, 12, 1)])
def test_the_parameters_of_mudd_are_as_on_its_card(layers: int, size: int, expansion: int) -> None:
    decoder = zoo.build("mudd", {"last_expansion": expansion}, {"num_layers": layers, "hidden_size": size})
    expected = 0
    for i in range(1, layers + 1):
        n, times = (layers + 1, expansion) if i == layers else (4 * (i + 1), 1)
        expected += times * n * size + times * n * n + n
    assert decoder.num_parameters()[1] == expected


dialects = pytest.mark.parametrize("dialect", ["streams", "outputs"])


@dialects
@pytest.mark.parametrize("num_recent", [None, 1, 2, 5])
@pytest.mark.parametrize("layers", [1, 2, 6])
def test_the_parameters_of_dca_are_as_on_its_card(layers: int, num_recent: int | None, dialect: str) -> None:
    decoder = zoo.build("dca", {"dialect": dialect, "num_recent": num_recent}, {"num_layers": layers})
    n = [min(i + 1, (num_recent or layers) + 2) for i in range(layers + 1)]
    per_size = {"streams": 6 * sum(n[1:layers]), "outputs": 3 * sum(n[i] + 1 for i in range(1, layers)) + n[layers] + 1}
    assert decoder.num_parameters()[1] == decoder.shape.hidden_size * per_size[dialect]


@pytest.mark.parametrize(
    ("num_recent", "streams", "outputs"), [(None, 6, 9), (1, 3, 6), (2, 4, 7), (4, 6, 9), (5, 6, 9)]
)
def test_the_bytes_in_flight_of_dca_are_as_on_its_card(num_recent: int | None, streams: int, outputs: int) -> None:
    for dialect, expected in (("streams", streams), ("outputs", outputs)):
        mixer = zoo.build("dca", {"dialect": dialect, "num_recent": num_recent}, {"num_layers": 6}).mixer
        assert mixer.in_flight_bytes(torch.float32) == 4 * expected * mixer.shape.hidden_size


@dialects
@torch.no_grad()
def test_k_dca_of_all_blocks_is_dca(dialect: str) -> None:
    tokens = zoo.some_tokens(2, 5)
    full, all_recent = (
        zoo.perturb(zoo.build("dca", {"dialect": dialect, "num_recent": k}, {}))(tokens) for k in (None, 4)
    )
    assert torch.equal(full, all_recent)


@dialects
def test_the_dynamic_weights_of_dca_learn_from_where_they_start(dialect: str) -> None:
    decoder = zoo.build("dca", {"dialect": dialect}, {})
    decoder(zoo.some_tokens(2, 5)).square().sum().backward()
    scores = {name: p.grad for name, p in decoder.mixer.named_parameters() if name.endswith("score")}
    assert scores
    assert all(grad is not None and grad.any() for grad in scores.values())


def powers(mixer: Mixer) -> list[tuple[list[int], int]]:
    """The sources and the stream after each block, where the embedding is 1 and sublayer i gives 10 to the i."""
    embedding, *rest = [torch.full((1, 1, 16), float(10**power), dtype=torch.float64) for power in range(13)]
    state, seen = mixer.start(embedding, Context(None)), []
    for site, y in zip(mixer.shape.sites(), rest, strict=True):
        state = mixer.write(state, site, y)
        if site.branch == "mlp":
            seen.append(([int(source[0, 0, 0]) for source in state.sources], int(state.stream[0, 0, 0])))
    return seen


@torch.no_grad()
def test_k_dca_of_outputs_sums_what_lies_between_the_embedding_and_the_recent_blocks() -> None:
    seen = powers(zoo.build("dca", {"dialect": "outputs", "num_recent": 2}, {"num_layers": 6}).mixer)
    assert all(sum(sources) == stream for sources, stream in seen)
    assert [sources for sources, _ in seen] == [
        [1, 110],
        [1, 110, 11000],
        [1, 110, 11000, 1100000],
        [1, 11110, 1100000, 110000000],
        [1, 1111110, 110000000, 11000000000],
        [1, 111111110, 11000000000, 1100000000000],
    ]


@torch.no_grad()
def test_k_dca_of_streams_keeps_the_embedding_and_the_recent_streams_and_one_before_them() -> None:
    mixer = zoo.build("dca", {"num_recent": 2}, {"num_layers": 6}).mixer
    seen = powers(mixer)
    assert [sources for sources, _ in seen] == [
        [1, 111],
        [1, 111, 11111],
        [1, 111, 11111, 1111111],
        [1, 11111, 1111111, 111111111],
        [1, 1111111, 111111111, 11111111111],
        [],
    ]
    assert seen[-1][1] == 1111111111111
    assert [site and site.step for site in mixer.sources(Site(5, 5, "attention"))] == [None, 2, 3, 4]


@torch.no_grad()
def test_the_dynamic_weights_of_outputs_are_scored_by_each_source_and_only_ever_add() -> None:
    grn = zoo.build("dca", {"dialect": "outputs"}, {}).mixer.final
    grn.score.copy_(torch.linspace(-1, 1, 16))
    up = torch.linspace(-1, 1, 16, dtype=torch.float64).expand(1, 1, 16)
    nothing = torch.zeros_like(up)
    score = float(up[0, 0] @ grn.score)
    zoo.assert_close(grn(up, [up, *[nothing] * 4]), (1 + score) * up, 1e-12)
    assert torch.equal(grn(-up, [-up, *[nothing] * 4]), -up)


@torch.no_grad()
def test_the_dynamic_weights_of_streams_are_scored_by_the_latest_and_only_ever_add() -> None:
    grn = zoo.build("dca", {}, {}).mixer.values["2"]
    earlier, other, last = torch.randn(3, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grn.score[0].copy_(last[0, 0])
    grn.score[1].copy_(-last[0, 0])
    score = float(last.square().sum())
    zoo.assert_close(grn(last, [earlier, other, last]), last + score * earlier, 1e-12)


@torch.no_grad()
def test_the_stream_of_streams_stays_a_plain_sum() -> None:
    mixer = zoo.perturb(zoo.build("dca", {}, {})).mixer
    embedding, *rest = outputs(4, mixer.shape.hidden_size)[:8]
    state, total = mixer.start(embedding, Context(None)), embedding
    for site, y in zip(mixer.shape.sites(), rest, strict=False):
        if site.branch == "mlp":
            assert torch.equal(mixer.read(state, site), total)
        state, total = mixer.write(state, site, y), total + y
    assert torch.equal(mixer.finish(state), total)


# Three inputs are normed again in the backward, but not where a module is no longer as the decoder made it.


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_projection_with_its_norm_has_the_bits_of_its_modules(bias: bool, autocast: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    norm, linear = RMSNorm(16, 1e-5), nn.Linear(16, 12, bias=bias)
    nn.init.normal_(norm.weight, generator=generator)
    x = torch.randn(2, 5, 16, generator=generator, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = linear(norm(x))
        with forms.forced("fused"):
            found = projection(linear, x, norm)
    assert torch.equal(found, expected)
    leaves = [x, norm.weight, *linear.parameters()]
    pairs = (torch.autograd.grad(y.float().sin().sum(), leaves) for y in (found, expected))
    for ours, theirs in zip(*pairs, strict=True):
        assert ours.dtype == theirs.dtype
        zoo.assert_close(ours, theirs, 0.02 if autocast else 1e-5)


class Adapted(nn.Linear):
    """A linear layer with something beside it, as adapters put there."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Stored(Tensor):
    """A weight as quantisation stores it: other numbers, which its linear layer knows to read."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs)
        return 2 * found.as_subclass(Tensor) if func is F.linear else found


def adapted(linear: nn.Linear) -> None:
    linear.__class__ = Adapted


def hooked(linear: nn.Linear) -> None:
    linear.register_forward_hook(lambda module, given, y: 2 * y)


def replaced(linear: nn.Linear) -> None:
    # As accelerate does.
    called = linear.forward
    linear.forward = lambda x: 2 * called(x)  # type: ignore[method-assign]


def stored(linear: nn.Linear) -> None:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Stored))


@pytest.mark.parametrize("change", [adapted, hooked, replaced, stored])
@pytest.mark.parametrize("place", ["q_proj", "k_proj", "v_proj"])
def test_modules_that_something_changed_are_called(change: Callable[[nn.Linear], None], place: str) -> None:
    decoder, doubled = (zoo.perturb(zoo.build("mudd", {}, {})) for _ in range(2))
    tokens = zoo.some_tokens(2, 5)
    change(decoder.model.layers[1].self_attn.get_submodule(place))
    weight = doubled.model.layers[1].self_attn.get_submodule(place).weight
    with torch.no_grad():
        weight *= 2
    with forms.forced("fused"):
        zoo.assert_close(decoder(tokens), doubled(tokens), 1e-12)


def test_a_changed_norm_is_called() -> None:
    decoder, doubled = (zoo.perturb(zoo.build("mudd", {}, {})) for _ in range(2))
    tokens = zoo.some_tokens(2, 5)
    decoder.model.layers[1].input_layernorm.register_forward_hook(lambda module, given, y: 2 * y)
    with torch.no_grad():
        doubled.model.layers[1].input_layernorm.weight *= 2
    with forms.forced("fused"):
        zoo.assert_close(decoder(tokens), doubled(tokens), 1e-12)


def test_hooks_on_all_modules_are_called() -> None:
    decoder, called = zoo.perturb(zoo.build("mudd", {}, {})), []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, given, y: called.append(module))
    try:
        with forms.forced("fused"):
            decoder(zoo.some_tokens(1, 3))
    finally:
        hook.remove()
    for layer in decoder.model.layers:
        assert all(each in called for each in (layer.input_layernorm, layer.self_attn.k_proj))


@pytest.mark.parametrize("form", ["naive", "fused"])
def test_what_a_borrowing_step_does_not_read_has_no_gradient(form: Any) -> None:
    options = {"of": [{"name": "dca"}, {"name": "cla"}]}
    decoder = zoo.perturb(zoo.build("compose", options, {}))
    with forms.forced(form):
        decoder(zoo.some_tokens(1, 5)).sin().sum().backward()
    none = {name for name, p in decoder.named_parameters() if p.grad is None}
    borrowing = [step for step in range(4) if not decoder.model.plan.owns_k(step)]
    assert borrowing
    assert none == {
        f"model.mixer.parts.dca.{way}.{step}.{part}"
        for way in ("keys", "values") for step in borrowing for part in ("bias", "score")
    }  # fmt: skip


def test_a_norm_runs_once_for_each_input_beside_hooks() -> None:
    decoder = zoo.perturb(zoo.build("compose", {"of": [{"name": "mudd"}, {"name": "moda"}]}, {}))
    for layer in decoder.model.layers:
        calls: list[int] = []
        hook = layer.input_layernorm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        decoder(zoo.some_tokens(1, 3))
        hook.remove()
        assert len(calls) == (1 if layer is decoder.model.layers[0] else 3)
