"""Training compiled by the layer: what eager training gives, with as many graphs for many layers as for few."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

import zoo
from case import LATENT
from mixerzoo import Decoder, MixerError
from mixerzoo.model import regions
from zoo import ZooCase, assert_close, some_tokens

# The compiler looks at it, and would hide what is said of that where warnings are not errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

#: Graphs of a mixer whose layers are all alike, and of those whose first or second layer is not.
MOST_GRAPHS = 3
#: Those that are compiled with the layers; of any other, the calls run between the compiled parts.
CHOSEN = tuple(case for case in zoo.PLAIN_CASES if case.mixer in ("residual", "mudd", "depth_attention", "cla", "lime"))
WITH_MIXER = {"residual", "smear", "cla", "yoco", "svformer", "fusedkv_lite"}


@pytest.fixture(autouse=True)
def _light_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    logging.getLogger("torch.__trace").disabled = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(regions, "_compiled", compiled)
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
