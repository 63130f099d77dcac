"""What must be equal is equal: decoding and training, alone and in a batch, one backend and another, one
mixer at its neutral setting and the residual stream; and bytes are what the plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from mixerzoo import Decoder, KVCache, Plan
from mixerzoo.errors import BackendError, CacheError, MixerError
from zoo import Case, assert_close, some_tokens

every_case = zoo.parametrized(zoo.CASES)
every_registered_case = zoo.parametrized(zoo.REGISTERED_CASES)

#: Lengths of the pieces that a sequence is fed in.
chunkings = st.lists(st.integers(1, 4), min_size=1, max_size=4)
#: Growing storage, or fixed storage with that much room to spare.
storages = st.none() | st.integers(0, 3)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len(set(map(str, zoo.CASES))) == len(zoo.CASES)


def new_cache(decoder: Decoder, batch_size: int, length: int, spare: int | None, **options: Any) -> KVCache:
    """A cache for ``length`` tokens: growing, or fixed with ``spare`` more."""
    return decoder.new_cache(batch_size, None if spare is None else length + spare, **options)


def fed(decoder: Decoder, tokens: Tensor, chunks: list[int], cache: KVCache, **arguments: Any) -> Tensor:
    """Logits [B, T, V] of tokens that go through a cache in pieces."""
    pieces = tokens.split(chunks, dim=1)
    return torch.cat([decoder(piece, cache, **arguments) for piece in pieces], dim=1)


# Decoding.


@every_case
@given(chunks=chunkings, spare=storages, grad=st.booleans())
def test_decode_in_any_chunking_equals_the_full_forward(
    case: Case, chunks: list[int], spare: int | None, grad: bool
) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, sum(chunks))
    with torch.set_grad_enabled(grad):
        cache = new_cache(decoder, 2, sum(chunks), spare)
        assert_close(fed(decoder, tokens, chunks, cache), decoder(tokens))
    assert cache.length == sum(chunks)


@every_case
@torch.no_grad()
def test_last_only_is_the_last(case: Case) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 5)
    assert_close(decoder(tokens, last_only=True), decoder(tokens)[:, -1:], 1e-12)


@every_case
@given(data=st.data(), spare=storages, length=st.integers(1, 6))
@torch.no_grad()
def test_decode_goes_on_after_crop(case: Case, data: st.DataObject, spare: int | None, length: int) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, length)
    kept = data.draw(st.integers(0, length), label="kept")
    cache = new_cache(decoder, 2, length + 3, spare, max_rollback=length)
    decoder(tokens, cache)
    cache.crop(kept)
    assert cache.length == kept
    other = torch.cat([tokens[:, :kept], some_tokens(2, 3, seed=1)], dim=1)
    chunks = data.draw(st.sampled_from([[3], [1, 2], [2, 1], [1, 1, 1]]), label="chunks")
    assert_close(fed(decoder, other[:, kept:], chunks, cache), decoder(other)[:, kept:])


@every_case
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=5), spare=storages)
@torch.no_grad()
def test_decode_goes_on_after_reorder(case: Case, rows: list[int], spare: int | None) -> None:
    decoder, tokens, more = zoo.shared(case), some_tokens(3, 4), some_tokens(len(rows), 2, seed=1)
    cache = new_cache(decoder, 3, 6, spare)
    decoder(tokens, cache)
    cache.reorder(torch.tensor(rows))
    whole = torch.cat([tokens[rows], more], dim=1)
    assert_close(fed(decoder, more, [1, 1], cache), decoder(whole)[:, 4:])


@every_case
@pytest.mark.parametrize("spare", [None, 1], ids=["growing", "fixed"])
@torch.no_grad()
def test_decode_goes_on_in_a_copy_and_after_reset(case: Case, spare: int | None) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 4)
    first, second = some_tokens(2, 2, seed=1), some_tokens(2, 2, seed=2)
    cache = new_cache(decoder, 2, 6, spare)
    decoder(tokens, cache)
    twin = cache.copy()
    assert_close(fed(decoder, first, [1, 1], twin), decoder(torch.cat([tokens, first], dim=1))[:, 4:])
    assert_close(fed(decoder, second, [2], cache), decoder(torch.cat([tokens, second], dim=1))[:, 4:])
    assert (twin.length, cache.length) == (6, 6)
    cache.reset()
    assert cache.length == 0
    assert_close(fed(decoder, first, [1, 1], cache), decoder(first))


@every_case
def test_gradients_flow_through_the_cache(case: Case) -> None:
    decoder, tokens = zoo.make(case), some_tokens(2, 5)
    parameters = list(decoder.parameters())

    def gradients(logits: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(logits[:, -1].square().sum(), parameters))

    whole = gradients(decoder(tokens))
    for max_length in (None, 5):
        cached = gradients(fed(decoder, tokens, [3, 1, 1], decoder.new_cache(2, max_length)))
        for ours, theirs in zip(cached, whole, strict=True):
            assert_close(ours, theirs)


# Who sees whom.


@every_case
@given(data=st.data(), length=st.integers(2, 8))
@torch.no_grad()
def test_the_past_does_not_see_the_future(case: Case, data: st.DataObject, length: int) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, length)
    changed_at = data.draw(st.integers(1, length - 1), label="changed at")
    changed = tokens.clone()
    changed[:, changed_at] = (changed[:, changed_at] + 1) % zoo.VOCAB_SIZE
    before, after = decoder(tokens), decoder(changed)
    assert torch.equal(before[:, :changed_at], after[:, :changed_at])
    assert not torch.equal(before[:, changed_at], after[:, changed_at])


@every_case
@given(length=st.integers(1, 6), row=st.integers(0, 2))
@torch.no_grad()
def test_rows_of_a_batch_are_independent(case: Case, length: int, row: int) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(3, length)
    changed = (tokens + 1) % zoo.VOCAB_SIZE
    changed[row] = tokens[row]
    together = decoder(tokens)
    assert torch.equal(decoder(changed)[row], together[row])
    assert_close(decoder(tokens[row : row + 1]), together[row : row + 1])


@every_case
@given(data=st.data(), length=st.integers(2, 6), cached=st.booleans(), spare=storages)
@torch.no_grad()
def test_left_padding_changes_no_real_token(
    case: Case, data: st.DataObject, length: int, cached: bool, spare: int | None
) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(3, length)
    padding = data.draw(st.lists(st.integers(0, length - 1), min_size=3, max_size=3), label="padding")
    counts = torch.tensor(padding)
    if cached:
        cut = data.draw(st.integers(1, length - 1), label="cut")
        cache = new_cache(decoder, 3, length, spare)
        padded = fed(decoder, tokens, [cut, length - cut], cache, left_padding=counts)
    else:
        padded = decoder(tokens, left_padding=counts)
    for row, pad in enumerate(padding):
        assert_close(padded[row, pad:], decoder(tokens[row : row + 1, pad:])[0])
    assert padded.isfinite().all()


@every_case
@given(lengths=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=2, max_size=2))
@torch.no_grad()
def test_packed_documents_do_not_see_one_another(case: Case, lengths: list[list[int]]) -> None:
    decoder = zoo.shared(case)
    total = max(sum(row) for row in lengths)
    # The shorter row ends in one more document.
    lengths = [row + [total - sum(row)] * (sum(row) < total) for row in lengths]
    tokens = some_tokens(2, total)
    documents = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])
    packed = decoder(tokens, documents=documents)
    for row, parts in enumerate(lengths):
        alone = [decoder(part[None])[0] for part in tokens[row].split(parts)]
        assert_close(packed[row], torch.cat(alone))


# Backends.


@every_case
@pytest.mark.parametrize("backend", ["eager", "flex"])
@torch.no_grad()
def test_backends_agree(case: Case, backend: str) -> None:
    decoder, other = zoo.shared(case), zoo.make(case, attention_backend=backend)
    tokens, padding = some_tokens(2, 6), torch.tensor([0, 3])
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
    assert_close(other(tokens), decoder(tokens))
    assert_close(other(tokens, documents=documents), decoder(tokens, documents=documents))
    # What padding tokens themselves get is not defined.
    real = torch.arange(6) >= padding[:, None]
    assert_close(other(tokens, left_padding=padding)[real], decoder(tokens, left_padding=padding)[real])
    for spare, arguments in ((None, {}), (1, {"left_padding": padding})):
        theirs = fed(other, tokens, [4, 2], new_cache(other, 2, 6, spare), **arguments)
        ours = fed(decoder, tokens, [4, 2], new_cache(decoder, 2, 6, spare), **arguments)
        chosen = real if arguments else torch.ones_like(real)
        assert_close(theirs[chosen], ours[chosen])


def test_xformers_is_refused_on_the_cpu() -> None:
    with pytest.raises(BackendError, match=r"'xformers' needs a CUDA device.*set model\.attention_backend to 'sdpa'"):
        zoo.make(Case("residual"), attention_backend="xformers")


# Gradients.


def gradients_of(decoder: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """The gradients of the parameters that have one."""
    decoder.zero_grad()
    logits = decoder(tokens)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    return {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}


@every_case
def test_every_parameter_gets_a_gradient(case: Case) -> None:
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
def test_activation_checkpointing_gives_the_same_gradients(case: Case) -> None:
    decoder, tokens = zoo.make(case), some_tokens(2, 6)
    plain = gradients_of(decoder, tokens)
    runs: list[int] = []
    decoder.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: runs.append(0))
    decoder.model.activation_checkpointing = True
    if decoder.plan.is_sequential:
        with pytest.raises(MixerError, match=r"slot in turn.*set train\.activation_checkpointing to false"):
            gradients_of(decoder, tokens)
        return
    recomputed = gradients_of(decoder, tokens)
    # Each run of the layer happens twice: forward, and again for the backward.
    assert len(runs) == 2 * decoder.plan.order.count(0)
    assert recomputed.keys() == plain.keys()
    for name, gradient in recomputed.items():
        assert_close(gradient, plain[name], 1e-12)


@every_registered_case
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
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
    ours, plain = zoo.build("denseformer", options, model), zoo.build("residual", {}, model)
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
def test_weights_depend_on_the_seed_alone(case: Case) -> None:
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
def test_the_decoder_s_weights_do_not_depend_on_the_mixer(case: Case, tied: bool) -> None:
    def weights_beside_the_mixer(decoder: Decoder) -> dict[str, Tensor]:
        return {n: t for n, t in decoder.state_dict().items() if not n.startswith("model.mixer.")}

    ours = weights_beside_the_mixer(zoo.make(case, perturbed=False, tie_embeddings=tied))
    plain = weights_beside_the_mixer(zoo.make(Case("residual", model=case.model), perturbed=False, tie_embeddings=tied))
    # A layer that borrows keys or values has no projection for them.
    missing = plain.keys() - ours.keys()
    assert all(name.split(".")[-2] in ("k_proj", "k_norm", "v_proj") for name in missing)
    for name, tensor in ours.items():
        assert torch.equal(tensor, plain[name]), name


@pytest.mark.parametrize("case", zoo.PLAIN_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_drawn_in_float32(case: Case, dtype: torch.dtype) -> None:
    exact = zoo.make(case, dtype=torch.float32, perturbed=False).state_dict()
    for name, tensor in zoo.make(case, dtype=dtype, perturbed=False).state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[name].to(dtype)), name


@pytest.mark.parametrize("case", zoo.PLAIN_CASES, ids=str)
def test_a_tied_head_is_the_embedding(case: Case) -> None:
    decoder = zoo.make(case, perturbed=False, tie_embeddings=True)
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    assert not decoder.lm_head.weight.isnan().any()
    untied = zoo.make(case, perturbed=False)
    assert untied.num_parameters()[0] - decoder.num_parameters()[0] == untied.lm_head.weight.numel()
    assert decoder.num_parameters() == (
        sum(p.numel() for n, p in decoder.named_parameters() if not n.startswith("model.mixer.")),
        sum(p.numel() for p in decoder.mixer.parameters()),
    )


# Bytes.


@every_case
@given(batch_size=st.integers(1, 3), length=st.integers(1, 7), spare=storages, dtype=st.sampled_from(zoo.DTYPES))
@torch.no_grad()
def test_cache_bytes_are_the_plan_s(
    case: Case, batch_size: int, length: int, spare: int | None, dtype: torch.dtype
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


def owned(cache: KVCache) -> Iterator[Tensor]:
    """Every tensor of keys or values that a cache holds."""
    yield from cache._keys.values()
    yield from cache._values.values()


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
        decoder = zoo.build(mixer, chosen, model)
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
def test_in_flight_bytes_are_measured_ones(case: Case, dtype: torch.dtype) -> None:
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
    decoder, tokens = zoo.shared(Case("residual")), some_tokens(2, 4)
    with pytest.raises(CacheError, match="made for another plan"):
        decoder(tokens, zoo.shared(Case("residual", model=zoo.LOOPED)).new_cache(2))
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
        zoo.make(Case("residual"), vocab_size=None)
