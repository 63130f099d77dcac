"""Chapter 2: cached decoding equals the full forward, whatever is done to the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder, KVCache
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import assert_close, clause
from mixerzoo.testing.observe import observed, tensors_in


def _decode(decoder: Decoder, case: Case, tokens: Tensor, cache: KVCache) -> Tensor:
    return torch.cat([decoder(piece, cache) for piece in case.pieces(tokens)], dim=1)


@clause("2.1", large=("rows", "long", "deep", "wide", "far", "big", "varied"))
@torch.no_grad()
def cached_decoding(mixer: type[Mixer], case: Case) -> None:
    """Decoding in any chunking through a growing cache equals the full forward without one.

    Sees: float64; growing cache.
    Blind: what rounding makes of decoding in bf16.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    cache = decoder.new_cache(case.batch_size)
    assert_close(_decode(decoder, case, tokens, cache), decoder(tokens), f"chunks {case.chunks} through the cache")
    assert cache.length == case.num_tokens, f"the cache counts {cache.length} tokens, not {case.num_tokens}"


@clause("2.2", large=("rows", "long", "deep", "far"))
@torch.no_grad()
def fixed_cache(mixer: type[Mixer], case: Case) -> None:
    """Fixed storage decodes like growing storage.

    Sees: float64; fixed storage.
    Blind: storage far longer than the text, and CUDA graphs.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    cache = decoder.new_cache(case.batch_size, max_length=case.num_tokens + case.pick % 3)
    assert_close(_decode(decoder, case, tokens, cache), decoder(tokens), f"chunks {case.chunks} through fixed storage")


@clause("2.3")
@torch.no_grad()
def crop(mixer: type[Mixer], case: Case) -> None:
    """After a rollback, decoding goes on as if the dropped tokens had never been (speculative decoding).

    Sees: float64; growing and fixed cache.
    Blind: several rollbacks in turn.
    """
    decoder = case.decoder(mixer)
    tokens, rejected = case.tokens(), case.tokens(draw=1)
    keep = case.pick % case.num_tokens
    for max_length in (None, 2 * case.num_tokens):
        cache = decoder.new_cache(case.batch_size, max_length, max_rollback=case.num_tokens)
        decoder(torch.cat([tokens[:, :keep], rejected[:, keep:]], dim=1), cache)
        cache.crop(keep)
        assert_close(decoder(tokens[:, keep:], cache), decoder(tokens)[:, keep:], f"after a crop to {keep} tokens")


@clause("2.4")
@torch.no_grad()
def reorder(mixer: type[Mixer], case: Case) -> None:
    """After its rows are reordered, the cache continues each row's own past (beam search).

    Sees: float64; growing cache.
    Blind: several reorders in turn, and fixed storage.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    split = case.pick % case.num_tokens
    rows = torch.arange(case.batch_size + 1).roll(case.pick) % case.batch_size
    cache = decoder.new_cache(case.batch_size)
    if split:
        decoder(tokens[:, :split], cache)
    cache.reorder(rows)
    following = case.tokens(draw=2)[rows][:, split:]
    expected = decoder(torch.cat([tokens[rows][:, :split], following], dim=1))[:, split:]
    assert_close(decoder(following, cache), expected, f"rows {rows.tolist()} after {split} tokens")


@clause("2.5")
@torch.no_grad()
def copy_and_reset(mixer: type[Mixer], case: Case) -> None:
    """Copies of a cache go separate ways (prefix reuse), and a reset cache is as good as new.

    Sees: float64; growing and fixed cache.
    Blind: copies of copies.
    """
    decoder = case.decoder(mixer)
    tokens, other = case.tokens(), case.tokens(draw=1)
    split = case.pick % case.num_tokens
    for max_length in (None, case.num_tokens):
        cache = decoder.new_cache(case.batch_size, max_length)
        if split:
            decoder(tokens[:, :split], cache)
        twin = cache.copy()
        branch = torch.cat([tokens[:, :split], other[:, split:]], dim=1)
        assert_close(decoder(other[:, split:], twin), decoder(branch)[:, split:], "the copy's continuation")
        assert_close(decoder(tokens[:, split:], cache), decoder(tokens)[:, split:], "the original's continuation")
        cache.reset()
        assert_close(_decode(decoder, case, other, cache), decoder(other), "after a reset")


@clause("2.6", large=("rows", "long", "deep", "far"))
@torch.no_grad()
def last_token(mixer: type[Mixer], case: Case) -> None:
    """Where only the last token's logits are asked for, they and the cache are those of the full forward.

    Sees: float64; forward and growing cache.
    Blind: padded and packed rows.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    with observed(decoder.mixer) as calls:
        expected = decoder(tokens)[:, -1:]
    assert_close(decoder(tokens, last_only=True), expected, "the last token's logits")
    # Few plans let a decoder ask, so the mixer is asked directly: what it gives must be the same from there on.
    for call, after in zip(calls.made, [*calls.made[1:], None], strict=True):
        state, *others = call.arguments
        narrowed = decoder.mixer.last_token(state) if call.name in ("read", "write", "finish") else None
        if narrowed is None:
            continue
        seen = call
        if call.name == "write":
            if after is None or after.name not in ("read", "finish"):
                continue
            site, y = others
            narrowed, seen = decoder.mixer.write(narrowed, site, y[:, -1:]), after
        again = getattr(decoder.mixer, seen.name)(narrowed, *seen.arguments[1:])
        for ours, whole in zip(tensors_in(again), tensors_in(seen.result), strict=True):
            assert_close(ours, whole[:, -1:], f"{seen} of the state of the last token, from {call} on")
    cache = decoder.new_cache(case.batch_size)
    for piece in case.pieces(tokens):
        last = decoder(piece, cache, last_only=True)
    assert_close(last, expected, f"the last token's logits after chunks {case.chunks}")
    following = case.tokens(draw=1)[:, :1]
    expected = decoder(torch.cat([tokens, following], dim=1))[:, -1:]
    assert_close(decoder(following, cache), expected, "the token after a prefill for the last token's logits")
