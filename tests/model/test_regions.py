"""Training compiled by the layer: what eager training gives, with as many graphs for many layers as for few."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import zoo
from case import LATENT
from mixerzoo import ConnectionMixer, Context, Decoder, MixerError, Plan, Site
from mixerzoo.errors import BackendError
from mixerzoo.model import compiled as compiling
from mixerzoo.model import decoder as decoders
from mixerzoo.model import regions
from mixerzoo.model.compiled import compiled
from mixerzoo_plugins.residual import Residual
from zoo import ZooCase, assert_close, some_tokens

# The compiler looks at it, and would hide what is said of that where warnings are not errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

#: Graphs of a mixer whose layers are all alike, and of those whose first or last ones are not.
MOST_GRAPHS = 3
CONNECTED = {"hyper_connections", "krom_hc", "laurel", "scaled_residual", "x0_lambda"}
#: Those that are compiled with the layers; of any other, the calls run between the compiled parts.
CHOSEN = tuple(
    case for case in zoo.PLAIN_CASES if case.mixer in {"residual", "mudd", "depth_attention", "cla", "lime"} | CONNECTED
)
WITH_MIXER = {"residual", "smear", "cla", "yoco", "svformer", "fusedkv_lite"} | CONNECTED


@pytest.fixture(autouse=True)
def _light_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.getLogger("torch.__trace").disabled = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for module in (regions, decoders):
        monkeypatch.setattr(module, "compiled", partial(compiled, backend="eager"))
    yield
    torch._dynamo.reset()


def gradients(decoder: Decoder, tokens: Tensor) -> list[Tensor]:
    loss = decoder.loss(tokens, tokens.roll(-1, 1))
    found = torch.autograd.grad(loss, list(decoder.parameters()), allow_unused=True)
    return [loss, *(grad for grad in found if grad is not None)]


def check(decoder: Decoder, *, recompute: bool = False) -> int:
    """Compare compiled with eager training; how many graphs there are."""
    tokens = some_tokens(2, 6)
    expected = gradients(decoder, tokens)
    decoder.model.activation_checkpointing = "layers" if recompute else "none"
    decoder.model.compile_training("layers")
    for _ in range(2):
        for ours, theirs in zip(gradients(decoder, tokens), expected, strict=True):
            assert_close(ours, theirs)
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_what_is_compiled_with_the_layers() -> None:
    found = {
        case.mixer
        for case in zoo.PLAIN_CASES
        if regions.Regions((decoder := zoo.shared(case)).plan, decoder.mixer).takes_mixer
    }
    assert found == WITH_MIXER


def test_tokens_that_go_one_by_one_are_not_compiled_by_the_layer() -> None:
    decoder = zoo.make(next(case for case in zoo.ADHOC_CASES if case.mixer == "rewriting"))
    assert decoder.plan.is_sequential
    with pytest.raises(MixerError, match=r"slot in turn.*set train\.compile to off"):
        decoder.model.compile_training("layers")


@zoo.parametrized(zoo.PLAIN_CASES, CHOSEN)
def test_many_layers_take_no_more_graphs_than_few(case: ZooCase) -> None:
    assert check(zoo.make(case, num_layers=6)) <= MOST_GRAPHS


@pytest.mark.parametrize(
    ("case", "recompute"),
    [
        (ZooCase("depth_attention", {"stride": 1}, zoo.LOOPED), True),
        (ZooCase("residual", {}, LATENT), False),
        (zoo.planned_case((0, 1, 1, 1), (0, 1, 1, 0), 3, 3, None, None), True),
    ],
    ids=str,
)
def test_loops_latents_windows_and_recomputation(case: ZooCase, recompute: bool) -> None:
    fixed = "loop" in case.model or case.mixer == "planned"
    check(zoo.make(case) if fixed else zoo.make(case, num_layers=3), recompute=recompute)


def test_only_training_is_compiled() -> None:
    decoder, tokens = zoo.make(ZooCase("residual")), some_tokens(2, 6)
    decoder.model.compile_training("layers")
    with torch.no_grad():
        decoder.loss(tokens, tokens)
    decoder(tokens, decoder.new_cache(2))
    assert not torch._dynamo.utils.counters["stats"]
    decoder.model.compile_training("off")
    gradients(decoder, tokens)
    assert not torch._dynamo.utils.counters["stats"]


@pytest.mark.parametrize("mode", ["layers", "whole"])
def test_graphs_of_other_decoders_do_not_count(mode: str) -> None:
    """A sweep over widths is many decoders in one process; PyTorch gives up after a few graphs of one function."""
    tokens = some_tokens(1, 4)
    for size in range(1, torch._dynamo.config.recompile_limit + 3):
        decoder = zoo.make(ZooCase("residual", {}, {"intermediate_size": 8 * size, "num_layers": 2}))
        decoder.model.compile_training("layers" if mode == "layers" else "whole")
        gradients(decoder, tokens)


class _Counted(NamedTuple):
    """A connection that has its number in it, or a state that grows with it."""

    number: int
    grows: bool

    def read(self, state: tuple[Tensor, ...]) -> Tensor:
        return state[-1]

    def write(self, state: tuple[Tensor, ...], y: Tensor) -> tuple[Tensor, ...]:
        x = state[-1] + y / self.number
        return (*state, x) if self.grows else (x,)


class _Counting(ConnectionMixer):
    """Connections that are all different."""

    name = "counting"
    card = Residual.card
    grows = False

    def start(self, x: Tensor, context: Context) -> tuple[Tensor, ...]:
        return (x,)

    def connection(self, site: Site) -> _Counted:
        return _Counted(site.number + 1, self.grows)

    def finish(self, state: tuple[Tensor, ...]) -> Tensor:
        return state[-1]


class _Growing(_Counting):
    """The same, with a state that grows."""

    name = "growing"
    grows = True


class _Overriding(_Counting):
    """A connection, and a write of its own."""

    name = "overriding"

    def connection(self, site: Site) -> _Counted:
        return _Counted(1, grows=False)

    def write(self, state: tuple[Tensor, ...], site: Site, y: Tensor) -> tuple[Tensor, ...]:
        return (state[-1] - y / (site.number + 1),)


class _Short(_Counting):
    """A plan of fewer steps than the decoder would take, and parameters for no more."""

    name = "short"

    def plan(self) -> Plan:
        return Plan.plain(self.shape.order[:-1])

    def connection(self, site: Site) -> _Counted:
        assert site.step < self.shape.num_steps - 1
        return _Counted(1, grows=False)


@pytest.mark.parametrize("mixer", [_Counting, _Growing, _Overriding])
def test_what_would_take_many_graphs_or_has_calls_of_its_own_runs_between(mixer: type[ConnectionMixer]) -> None:
    decoder = zoo.decoder_of(mixer, model={"num_layers": 12})
    assert not regions.Regions(decoder.plan, decoder.mixer).takes_mixer
    assert check(decoder) <= MOST_GRAPHS


def test_sites_that_a_plan_leaves_out_are_not_asked_for() -> None:
    decoder = zoo.decoder_of(_Short)
    assert regions.Regions(decoder.plan, decoder.mixer).takes_mixer
    check(decoder)


def test_as_many_graphs_as_kinds_of_layers_and_shapes_are_made() -> None:
    layers = torch._dynamo.config.recompile_limit + 1
    slots = tuple(range(layers))
    windows = zoo.planned_case(slots, slots, *range(2, layers + 2), num_layers=layers)
    assert check(zoo.make(windows)) == layers
    decoder = zoo.make(ZooCase("x0_lambda"))
    decoder.model.compile_training("layers")
    for length in range(2, layers):
        gradients(decoder, some_tokens(1, length))


def test_more_than_that_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_GRAPHS", torch._dynamo.config.recompile_limit)
    decoder = zoo.make(ZooCase("x0_lambda"))
    decoder.model.compile_training("layers")

    def run() -> None:
        for length in range(2, 9):
            gradients(decoder, some_tokens(1, length))

    with pytest.raises(BackendError, match=r"more than 8 times: the shapes of batches.*train\.compile to off"):
        run()


def test_a_mixer_that_was_replaced_is_not_taken_for_the_one_that_was_looked_at() -> None:
    decoder = zoo.make(ZooCase("scaled_residual"))
    decoder.model.compile_training("layers")
    decoder.model.mixer = zoo.make(ZooCase("residual")).mixer
    with pytest.raises(MixerError, match="replaced after compile_training"):
        gradients(decoder, some_tokens(1, 4))


@pytest.mark.parametrize(
    ("case", "recompute"),
    [
        (ZooCase("depth_attention", {"stride": 1}, LATENT | {"num_layers": 10}), False),
        (ZooCase("hyper_connections", {"variant": "mhc_lite", "num_streams": 2}), True),
        (ZooCase("laurel", {"variant": "rw+lr+pa", "bound": "sigmoid"}, zoo.LOOPED), True),
        (ZooCase("scaled_residual", {"gate": "highway"}, LATENT), False),
    ],
    ids=str,
)
def test_gradients_through_the_tracer_of_autograd(
    case: ZooCase, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views and states that come out as they went in are its affair, which the light backend leaves out."""
    monkeypatch.setattr(regions, "compiled", partial(compiled, backend="aot_eager"))
    check(zoo.make(case), recompute=recompute)
