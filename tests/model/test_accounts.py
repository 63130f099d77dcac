"""Bytes are what the plan and the mixer say; what a decoder cannot take is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from decoding import new_cache, owned, storages
from mixerzoo import Decoder, Plan
from mixerzoo.errors import CacheError, MixerError
from zoo import ZooCase, some_tokens

every_case = zoo.parametrized(zoo.CASES)


every_registered_case = zoo.parametrized(zoo.REGISTERED_CASES)


# Bytes.


@every_case
@given(batch_size=st.integers(1, 3), length=st.integers(1, 7), spare=storages, dtype=st.sampled_from(zoo.DTYPES))
@torch.no_grad()
def test_cache_bytes_are_the_plan_s(
    case: ZooCase, batch_size: int, length: int, spare: int | None, dtype: torch.dtype
) -> None:
    decoder, plan = zoo.shared(case), zoo.shared(case).plan
    cache = new_cache(decoder, batch_size, length, spare, dtype=dtype)
    capacity = length if spare is None else length + spare
    decoder(some_tokens(batch_size, length), cache)
    stored = list({data.untyped_storage().data_ptr(): data for data in owned(cache)}.values())
    tail = plan.bytes_per_sequence(dtype) * batch_size
    assert all(data.dtype == dtype for data in stored)
    assert sum(data.untyped_storage().nbytes() for data in stored) + tail == cache.allocated_nbytes
    expected = plan.elements(decoder.shape, capacity) * dtype.itemsize * batch_size
    assert cache.nbytes == expected + tail
    assert cache.bytes_per_token == plan.bytes_per_token(decoder.shape, dtype)
    # By hand: every owned slot holds G·d numbers a token, up to its window.
    slots = [plan.windows[slot] for writes in (plan.k_writes, plan.v_writes) for slot in {*writes} - {None}]
    tokens = sum(min(capacity, window or capacity) for window in slots)
    assert expected == tokens * zoo.MODEL["num_kv_heads"] * zoo.MODEL["head_dim"] * dtype.itemsize * batch_size
    if not any(slots):
        assert cache.nbytes == cache.bytes_per_token * capacity * batch_size + tail
    if spare is None:
        assert cache.nbytes == sum(data[:, :, :length].nbytes for data in stored) + tail


@given(
    model=zoo.models(), options=zoo.OPTIONS["depth_attention"], length=st.integers(1, 5), spare=storages,
    dtype=st.sampled_from(zoo.DTYPES),
)  # fmt: skip
@torch.no_grad()
def test_depth_attention_s_cache_is_residual_s_to_the_byte(
    model: dict[str, Any], options: dict[str, Any], length: int, spare: int | None, dtype: torch.dtype
) -> None:
    caches = []
    for mixer, chosen in (("depth_attention", options), ("residual", {})):
        decoder = zoo.build_drawn(mixer, chosen, model)
        caches.append(new_cache(decoder, 2, length, spare, dtype=dtype))
        decoder(some_tokens(2, length), caches[-1])
    ours, plain = caches
    assert (ours.nbytes, ours.allocated_nbytes, ours.bytes_per_token) == (
        plain.nbytes, plain.allocated_nbytes, plain.bytes_per_token,
    )  # fmt: skip
    assert [data.shape for data in owned(ours)] == [data.shape for data in owned(plain)]
    assert ours.bytes_per_token == (
        2 * len(decoder.plan.order) * model["num_kv_heads"] * model["head_dim"] * dtype.itemsize
    )


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a state."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state:
            yield from leaves(part)


def in_flight(decoder: Decoder, tokens: Tensor) -> float:
    """The most bytes per token that a state has held, by the storage of its tensors."""
    mixer, most = decoder.mixer, 0

    def measured(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal most
            result = call(*arguments)
            state = result[0] if call.__name__ == "mix_kv" else result
            storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves(state)}
            most = max(most, sum(storages.values()))
            return result

        return wrapped

    for name in ("start", "mix_kv", "write"):
        setattr(mixer, name, measured(getattr(mixer, name)))
    decoder(tokens)
    return most / tokens.numel()


@every_registered_case
@pytest.mark.parametrize("dtype", zoo.DTYPES, ids=str)
@torch.no_grad()
def test_in_flight_bytes_are_measured_ones(case: ZooCase, dtype: torch.dtype) -> None:
    decoder = zoo.make(case, dtype=dtype)
    measured, declared = in_flight(decoder, some_tokens(2, 3)), decoder.mixer.in_flight_bytes(dtype)
    assert measured == declared


@pytest.mark.parametrize("mixer", zoo.REGISTERED)
@given(data=st.data(), model=zoo.models())
@torch.no_grad()
def test_in_flight_bytes_of_any_shape_are_measured_ones(mixer: str, data: st.DataObject, model: dict[str, Any]) -> None:
    decoder = zoo.build_drawn(mixer, data.draw(zoo.OPTIONS[mixer], label="options"), model)
    measured, declared = in_flight(decoder, some_tokens(1, 2)), decoder.mixer.in_flight_bytes(torch.float64)
    assert measured == declared


# Refusals.


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    decoder, tokens = zoo.shared(ZooCase("residual")), some_tokens(2, 4)
    with pytest.raises(CacheError, match="made for another plan"):
        decoder(tokens, zoo.shared(ZooCase("residual", model=zoo.LOOPED)).new_cache(2))
    with pytest.raises(CacheError, match="a batch of 2 rows does not fit in a cache of 3"):
        decoder(tokens, decoder.new_cache(3))
    with pytest.raises(CacheError, match="packed documents cannot be decoded"):
        decoder(tokens, decoder.new_cache(2), documents=torch.zeros_like(tokens))
    cache = decoder.new_cache(2, 6)
    decoder(tokens, cache)
    before = [data.clone() for data in owned(cache)]
    with pytest.raises(CacheError, match=r"3 new tokens after 4 do not fit.*max_length 6; make it at least 7"):
        decoder(tokens[:, :3], cache)
    assert cache.length == 4
    assert all(torch.equal(old, new) for old, new in zip(before, owned(cache), strict=True))


def test_methods_that_need_their_own_values_are_refused_where_there_are_none() -> None:
    class Borrowing(zoo.mixer_class("depth_attention")):  # type: ignore[misc]
        name = "borrowing"

        def plan(self) -> Any:
            own = super().plan()
            planned = Plan.borrowing(own.order, (0, 1, 1, 3), (0, 1, 1, 3))
            return replace(planned, hooks=own.hooks, needs_own_kv=own.needs_own_kv)

    with pytest.raises(MixerError, match=r"'borrowing' needs each layer's own keys and values, but steps \[2\]"):
        zoo.decoder_of(Borrowing)


def test_three_inputs_at_an_mlp_are_refused() -> None:
    class Everywhere(zoo.mixer_class("separate")):  # type: ignore[misc]
        name = "everywhere"

        def read(self, state: Any, site: Any) -> Any:
            return super().read(state, site._replace(branch="attention"))

    with pytest.raises(MixerError, match="'everywhere' returned AttentionInputs at an MLP site"):
        zoo.decoder_of(Everywhere)(some_tokens(1, 2))


def test_a_parameter_without_a_value_is_refused() -> None:
    class Forgetful(zoo.mixer_class("residual")):  # type: ignore[misc]
        name = "forgetful"

        def __init__(self, config: Any, shape: Any) -> None:
            super().__init__(config, shape)
            self.gain = torch.nn.Parameter(torch.empty(3))

        def reset_parameters(self, generator: torch.Generator, std: float) -> None:
            torch.nn.init.ones_(self.gain[:2])

    with pytest.raises(MixerError, match="'forgetful' gives its parameter 'gain' no initial value"):
        zoo.decoder_of(Forgetful)


def test_parameters_without_reset_parameters_are_refused() -> None:
    class Silent(zoo.mixer_class("residual")):  # type: ignore[misc]
        name = "silent"

        def __init__(self, config: Any, shape: Any) -> None:
            super().__init__(config, shape)
            self.gain = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(MixerError, match="'silent' has parameters but does not define reset_parameters"):
        zoo.decoder_of(Silent)


def test_a_plan_of_layers_that_do_not_exist_is_refused() -> None:
    class Deep(zoo.mixer_class("residual")):  # type: ignore[misc]
        name = "deep"

        def plan(self) -> Any:
            return type(super().plan()).plain((0, 1, 2, 3, 4))

    with pytest.raises(MixerError, match="'deep' plans layers"):
        zoo.decoder_of(Deep)


def test_an_open_vocabulary_is_refused() -> None:
    with pytest.raises(MixerError, match=r"model\.vocab_size is not set"):
        zoo.make(ZooCase("residual"), vocab_size=None)
