"""Chapter 1: along the sequence, a token depends on nothing but its own past."""

from __future__ import annotations

import torch

from mixerzoo.mixer import Mixer
from mixerzoo.testing.case import VOCAB_SIZE, Case
from mixerzoo.testing.check import assert_close, assert_same, clause


@clause("1.1", large=("rows", "long", "deep", "wide", "far"))
@torch.no_grad()
def causality(mixer: type[Mixer], case: Case) -> None:
    """A token's logits do not change when later tokens do, in any bit.

    Sees: float64, bf16 weights, bf16 autocast.
    Blind: leaks in float16 alone, and in texts longer than the largest.
    """
    tokens = case.tokens()
    position = case.pick % case.num_tokens
    changed = tokens.clone()
    changed[:, position:] = (changed[:, position:] + 1 + case.tokens(draw=1)[:, position:] % 7) % VOCAB_SIZE
    decoder = case.decoder(mixer)
    for dtype, autocast in ((torch.float64, False), (torch.float32, True), (torch.bfloat16, False)):
        decoder.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            before, after = decoder(tokens), decoder(changed)
        where = "" if dtype == torch.float64 else " under bf16 autocast" if autocast else " with bf16 weights"
        assert_same(after[:, :position], before[:, :position], f"logits before the changed position {position}{where}")


@clause("1.2")
@torch.no_grad()
def token_local_mixing(mixer: type[Mixer], case: Case) -> None:
    """Without attention between tokens, a token's logits do not depend on the other tokens at all.

    Sees: float64.
    Blind: what crosses tokens only where attention crosses them too.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    # Every token its own document: attention sees one token, so anything that crosses comes from the mixer.
    alone = torch.arange(case.num_tokens).expand_as(tokens)
    together = decoder(tokens, documents=alone)
    singly = torch.cat([decoder(tokens[:, t : t + 1]) for t in range(case.num_tokens)], dim=1)
    assert_close(together, singly, "logits of tokens that see themselves only, against one token at a time")


@clause("1.3")
@torch.no_grad()
def rows_independent(mixer: type[Mixer], case: Case) -> None:
    """Rows of a batch do not see each other, and permuting them permutes the logits.

    Sees: float64.
    Blind: rows that meet in a cache (2.4).
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    together = decoder(tokens)
    for row in range(case.batch_size):
        assert_close(decoder(tokens[row : row + 1])[0], together[row], f"row {row} alone, against in its batch")
    order = torch.arange(case.batch_size).roll(1 + case.pick)
    assert_close(decoder(tokens[order]), together[order], "logits of permuted rows")


@clause("1.4")
@torch.no_grad()
def left_padding(mixer: type[Mixer], case: Case) -> None:
    """Padding on the left leaves the logits of real tokens unchanged, also through the cache.

    Sees: float64; also through a growing cache.
    Blind: more than three tokens of padding, and fixed storage.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    expected = decoder(tokens)
    padding = (torch.arange(case.batch_size) + case.pick) % 4
    longest = int(padding.max())
    filler = torch.full((case.batch_size, longest), case.pick % VOCAB_SIZE)
    rows = [torch.cat([filler[i, : padding[i]], tokens[i], filler[i, padding[i] :]]) for i in range(case.batch_size)]
    padded = torch.stack(rows)
    cache = decoder.new_cache(case.batch_size)
    pieces = [decoder(piece, cache, left_padding=padding) for piece in torch.split(padded, 2, dim=1)]
    whole = decoder(padded, left_padding=padding)
    for row, pad in enumerate(padding.tolist()):
        real = slice(pad, pad + case.num_tokens)
        assert_close(whole[row, real], expected[row], f"row {row} behind {pad} padding tokens")
        assert_close(torch.cat(pieces, 1)[row, real], expected[row], f"row {row} behind padding, through the cache")


@clause("1.5")
@torch.no_grad()
def packed_documents(mixer: type[Mixer], case: Case) -> None:
    """Documents packed into one row give the logits that each gives alone.

    Sees: float64.
    Blind: packing in narrower dtypes, and its gradients.
    """
    decoder = case.decoder(mixer)
    tokens = case.tokens()
    lengths = torch.tensor(case.chunks)
    documents = torch.arange(len(case.chunks)).repeat_interleave(lengths).expand_as(tokens)
    packed = decoder(tokens, documents=documents)
    singly = torch.cat([decoder(piece) for piece in case.pieces(tokens)], dim=1)
    assert_close(packed, singly, "packed documents against each alone")
