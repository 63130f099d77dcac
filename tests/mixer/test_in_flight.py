"""Bytes in flight that a mixer does not count itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from mixerzoo import DecoderShape, MixerConfig, MixerError, ModelConfig, Plan, Site
from mixerzoo_plugins.denseformer import DenseFormer
from mixerzoo_plugins.residual import Residual

SHAPE = ModelConfig(**zoo.MODEL).shape()


def mixer(cls: type[Any], shape: DecoderShape = SHAPE) -> Any:
    with torch.device("meta"):
        return cls(cls.Config(), shape)


class Remembers(Residual):
    """The stream, and beside it something that has no tokens."""

    name = "remembers"

    def start(self, x: Tensor, context: Any) -> Any:
        return x, x.new_zeros(x.size(0), 1000)

    def read(self, state: Any, site: Site) -> Tensor:
        stream: Tensor = state[0]
        return stream

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        return state[0] + y, state[1]


class Fails(Residual):
    """Wants what zeros are not."""

    name = "fails"

    def write(self, state: Tensor, site: Site, y: Tensor) -> Tensor:
        raise RuntimeError("no zeros, please")


class Counts(Fails):
    def in_flight_bytes(self, dtype: torch.dtype) -> int:
        return 7


class ViewsOfOne(Residual):
    """Three views of the embedding, two of them the same."""

    name = "views_of_one"

    def start(self, x: Tensor, context: Any) -> Any:
        return x[..., :4], x[..., :4], x[..., 4:6]

    def write(self, state: Any, site: Site, y: Tensor) -> Any:
        # A view of what the mixer made keeps all of it.
        return ((state[0].repeat(1, 1, 2))[..., :4], None)


class PlansNoHooks(DenseFormer):
    """Its state grows in a hook that its plan does not list."""

    name = "plans_no_hooks"

    def plan(self) -> Plan:
        return Plan.plain(self.shape.order)

    def mix_kv(self, state: Any, call: Any) -> Any:
        raise AssertionError("never called")


def test_what_does_not_grow_with_tokens_is_not_counted() -> None:
    assert mixer(Remembers).in_flight_bytes(torch.float32) == 16 * 4


def test_views_of_given_tensors_count_alone_and_others_whole() -> None:
    assert mixer(ViewsOfOne).in_flight_bytes(torch.float32) == 8 * 4


def test_a_hook_that_is_not_planned_is_not_called() -> None:
    assert mixer(PlansNoHooks).in_flight_bytes(torch.float32) == mixer(DenseFormer).in_flight_bytes(torch.float32)


@pytest.mark.parametrize("dtype", zoo.DTYPES)
def test_the_figure_depends_on_nothing_but_options_shape_and_dtype(dtype: torch.dtype) -> None:
    streams = (SHAPE.num_steps + 1) * SHAPE.hidden_size * dtype.itemsize
    decoder = zoo.decoder_of(DenseFormer, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in decoder.mixer.state_dict().items()}
    assert decoder.mixer.in_flight_bytes(dtype) == mixer(DenseFormer).in_flight_bytes(dtype) == streams
    for name, tensor in decoder.mixer.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_mixer_that_cannot_be_run_so_is_told_to_count() -> None:
    words = r"mixer 'fails': the bytes of its state cannot be derived, .* \(no zeros, please\)"
    with pytest.raises(MixerError, match=words):
        mixer(Fails).in_flight_bytes(torch.float32)
    assert mixer(Counts).in_flight_bytes(torch.float32) == 7


def test_a_second_question_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = mixer(Remembers)
    first = ours.in_flight_bytes(torch.float32)
    monkeypatch.setattr(Remembers, "start", None)
    assert ours.in_flight_bytes(torch.float32) == first


def test_options_need_no_defaults() -> None:
    class Config(MixerConfig):
        width: int

    class Wide(Remembers):
        name = "wide"

    Wide.Config = Config
    with torch.device("meta"):
        assert Wide(Config(width=3), SHAPE).in_flight_bytes(torch.bfloat16) == 32
