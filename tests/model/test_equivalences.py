"""What must be equal is equal: decoding and full forward, alone and in a batch, one backend and another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from decoding import chunkings, fed, new_cache, storages
from mixerzoo.errors import BackendError
from zoo import ZooCase, assert_close, some_tokens

every_case = zoo.parametrized(zoo.CASES)


def test_every_case_has_a_name_of_its_own() -> None:
    assert len(set(map(str, zoo.CASES))) == len(zoo.CASES)


# Decoding.


@every_case
@given(chunks=chunkings, spare=storages, grad=st.booleans())
def test_decode_in_any_chunking_equals_the_full_forward(
    case: ZooCase, chunks: list[int], spare: int | None, grad: bool
) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, sum(chunks))
    with torch.set_grad_enabled(grad):
        cache = new_cache(decoder, 2, sum(chunks), spare)
        assert_close(fed(decoder, tokens, chunks, cache), decoder(tokens))
    assert cache.length == sum(chunks)


@every_case
@torch.no_grad()
def test_last_only_is_the_last(case: ZooCase) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 5)
    assert_close(decoder(tokens, last_only=True), decoder(tokens)[:, -1:], 1e-12)


@every_case
@given(data=st.data(), spare=storages, length=st.integers(1, 6))
@torch.no_grad()
def test_decode_goes_on_after_crop(case: ZooCase, data: st.DataObject, spare: int | None, length: int) -> None:
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
def test_decode_goes_on_after_reorder(case: ZooCase, rows: list[int], spare: int | None) -> None:
    decoder, tokens, more = zoo.shared(case), some_tokens(3, 4), some_tokens(len(rows), 2, seed=1)
    cache = new_cache(decoder, 3, 6, spare)
    decoder(tokens, cache)
    cache.reorder(torch.tensor(rows))
    whole = torch.cat([tokens[rows], more], dim=1)
    assert_close(fed(decoder, more, [1, 1], cache), decoder(whole)[:, 4:])


@pytest.mark.parametrize("case", [ZooCase("yoco", {"window": 3}), ZooCase("smear"), ZooCase("residual")], ids=str)
@pytest.mark.parametrize("spare", [None, 0], ids=["growing", "fixed"])
@pytest.mark.parametrize("place", ["model.layers.0.mlp", "model.layers.3.mlp", "lm_head"])
@torch.no_grad()
def test_a_forward_that_was_interrupted_can_be_made_again(case: ZooCase, spare: int | None, place: str) -> None:
    decoder, tokens, chunks = zoo.make(case), some_tokens(2, 9), [3, 1, 4, 1]
    full, cache, pieces = decoder(tokens), new_cache(decoder, 2, 9, spare), []

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for piece in tokens.split(chunks, dim=1):
        length, hook = cache.length, decoder.get_submodule(place).register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder(piece, cache)
        hook.remove()
        assert cache.length == length
        pieces.append(decoder(piece, cache))
    assert_close(torch.cat(pieces, dim=1), full)


@every_case
@torch.no_grad()
def test_the_backbone_alone_goes_through_a_cache_too(case: ZooCase) -> None:
    decoder, tokens = zoo.shared(case), some_tokens(2, 5)
    cache = decoder.new_cache(2)
    hidden = [decoder.model(piece, cache) for piece in tokens.split([2, 1, 2], dim=1)]
    assert cache.length == 5
    assert_close(torch.cat(hidden, dim=1), decoder.model(tokens))


@every_case
@pytest.mark.parametrize("spare", [None, 1], ids=["growing", "fixed"])
@torch.no_grad()
def test_decode_goes_on_in_a_copy_and_after_reset(case: ZooCase, spare: int | None) -> None:
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
def test_gradients_flow_through_the_cache(case: ZooCase) -> None:
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
def test_the_past_does_not_see_the_future(case: ZooCase, data: st.DataObject, length: int) -> None:
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
def test_rows_of_a_batch_are_independent(case: ZooCase, length: int, row: int) -> None:
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
    case: ZooCase, data: st.DataObject, length: int, cached: bool, spare: int | None
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
def test_packed_documents_do_not_see_one_another(case: ZooCase, lengths: list[list[int]]) -> None:
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


#: In CI with every backend; the others are slow ones.
ANY_BACKEND = (
    *(case for case in zoo.PLAIN_CASES if case.mixer in ("residual", "depth_attention", "mudd", "yoco", "moda", "cla")),
    *(case for case in zoo.ADHOC_CASES if case.mixer == "planned"),
)


@zoo.parametrized(zoo.CASES, ANY_BACKEND)
@pytest.mark.parametrize("backend", ["eager", "flex"])
@torch.no_grad()
def test_backends_agree(case: ZooCase, backend: str) -> None:
    decoder = zoo.shared(case)
    if backend == "flex" and "depth_kv" in decoder.plan.hooks:
        with pytest.raises(BackendError, match="joins entries along depth"):
            zoo.make(case, attention_backend=backend)
        return
    other = zoo.make(case, attention_backend=backend)
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
        zoo.make(ZooCase("residual"), attention_backend="xformers")
