"""Chapter 4: what a mixer says it costs is what it costs."""

from __future__ import annotations

import torch

from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer
from mixerzoo.model import Decoder
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import clause
from mixerzoo.testing.count import counted_flops
from mixerzoo.testing.formula import evaluate, is_formula, names_in
from mixerzoo.testing.observe import Calls, largest_state, observed, state_bytes, tokens_of_a_call


@clause("4.1")
@torch.no_grad()
def kv_bytes(mixer: type[Mixer], case: Case) -> None:
    """Cache bytes measured are those of the plan and of the card's formula.

    Sees: float32; fixed storage.
    Blind: the card's formula with latent attention, and where an option in it is no number.
    """
    assert_kv_bytes(case.decoder(mixer, dtype=torch.float32), case)


def assert_kv_bytes(decoder: Decoder, case: Case) -> None:
    """Demand 4.1 of a decoder in float32."""
    plan, shape = decoder.plan, decoder.shape
    assert decoder.mixer.plan() == plan, "the plan differs between two calls"
    cache = decoder.new_cache(case.batch_size, max_length=case.num_tokens)
    decoder(case.tokens(), cache)
    planned = case.batch_size * plan.cache_bytes(shape, case.num_tokens, torch.float32)
    assert cache.nbytes == planned, f"the cache takes {cache.nbytes} bytes, the plan says {planned}"
    said, claimed = decoder.mixer.card.kv_bytes, _claimed(decoder, "kv_bytes", torch.float32)
    per_token = plan.bytes_per_token(shape, torch.float32)
    assert claimed is None or claimed == per_token, (
        f"the card says {said} = {claimed} bytes per token, the plan {per_token}"
    )


@clause("4.2")
@torch.no_grad()
def in_flight_bytes(mixer: type[Mixer], case: Case) -> None:
    """The state never takes more bytes per token than declared, and at its peak at least half of that.

    Sees: float32, bf16; without gradients.
    Blind: peaks within a call, what autograd keeps, and a factor of two (10.2).
    """
    assert_in_flight_bytes(case.decoder(mixer, dtype=torch.float32), case)


def assert_in_flight_bytes(decoder: Decoder, case: Case) -> None:
    """Demand 4.2 of a decoder, which is cast to float32, then to bf16."""
    num_tokens = case.batch_size * tokens_of_a_call(decoder, case.num_tokens)
    for dtype in (torch.float32, torch.bfloat16):
        decoder.to(dtype)
        with observed(decoder.mixer) as calls:
            decoder(case.tokens())
        measured = max(state_bytes(calls)) / num_tokens
        declared = decoder.mixer.in_flight_bytes(dtype)
        assert measured <= declared <= 2 * measured, (
            f"the state takes {measured:g} bytes per token in {dtype}, {declared} are declared; "
            f"{_counted(calls, num_tokens)}"
        )
        claimed = _claimed(decoder, "in_flight_bytes", dtype)
        # A formula says what is usual, and one layer may hold less.
        assert claimed is None or declared <= claimed <= 2 * declared, (
            f"the card says {decoder.mixer.card.in_flight_bytes} = {claimed:g} bytes per token, {declared} are "
            f"declared; {_counted(calls, num_tokens)}"
        )


def _counted(calls: Calls, num_tokens: int) -> str:
    return f"that of {num_tokens} tokens is largest {largest_state(calls)}"


@clause("4.3", large=())
def parameters(mixer: type[Mixer], case: Case) -> None:
    """The mixer owns its parameters and leaves the decoder's alone.

    Sees: built, not run.
    Blind: tensors hidden in lists that are neither parameters nor buffers.
    """
    assert_parameters(case.decoder(mixer))


def assert_parameters(decoder: Decoder) -> None:
    """Demand 4.3 of a decoder."""
    of_decoder, mixing = decoder.num_parameters()
    own = {name for name, _ in decoder.named_parameters() if name.startswith("model.mixer.")}
    assert mixing == sum(p.numel() for n, p in decoder.named_parameters() if n in own)
    assert of_decoder + mixing == sum(p.numel() for p in decoder.parameters())
    claimed = _claimed(decoder, "parameters", torch.float64)
    if claimed is not None:
        assert claimed == mixing, (
            f"the card says {decoder.mixer.card.parameters} = {claimed:g} parameters, there are {mixing}"
        )
    buffers = [name for name, _ in decoder.mixer.named_buffers()]
    assert not buffers, f"buffers {buffers} would be lost on the meta device; compute them from the config"


@clause("4.4")
@torch.no_grad()
def flops(mixer: type[Mixer], case: Case) -> None:
    """The FLOPs declared are those counted in the mixer's calls, up to conventions (a factor of two and a bit).

    Sees: float32; without gradients.
    Blind: a factor of two (10.2), and kernels that PyTorch does not show.
    """
    assert_flops(case.decoder(mixer, dtype=torch.float32), case)


def assert_flops(decoder: Decoder, case: Case) -> None:
    """Demand 4.4 of a decoder."""
    with counted_flops(decoder.mixer) as counter:
        decoder(case.tokens())
    counted = counter.flops / (case.batch_size * case.num_tokens)
    # A plain stream adds every sublayer's output: D additions a site, which nobody counts.
    plain = 2 * decoder.shape.num_steps * decoder.shape.hidden_size
    declared = decoder.mixer.flops_per_token()
    assert counted <= 2 * (declared + plain), f"{counted:g} FLOPs per token were counted, {declared} are declared"
    assert declared <= 2 * counted, f"{declared} FLOPs per token are declared, {counted:g} were counted"


@clause("4.5", large=("rows", "long", "deep"))
def sources(mixer: type[Mixer], case: Case) -> None:
    """The sources that a mixer names for pictures are sites of the decoder that come no later than the reader.

    Sees: built, not run.
    Blind: wrong sources that come early enough (10.2).
    """
    decoder = case.decoder(mixer)
    order = {site: number for number, site in enumerate(decoder.shape.sites())}
    for site in decoder.shape.sites():
        for source in decoder.mixer.sources(site):
            assert source is None or source in order, f"{site} names {source}, which is no site of the decoder"
            assert source is None or order[source] <= order[site], f"{site} names the later {source}"


@clause("4.6", large=())
def card(mixer: type[Mixer], case: Case) -> None:
    """The card says what it must: title, summary, equation, where it acts, costs.

    Sees: built, not run.
    Blind: whether the words are true.
    """
    said = mixer.card
    for name in ("title", "summary", "equation", "acts_on", "parameters", "kv_bytes", "in_flight_bytes"):
        assert str(getattr(said, name)).strip(), f"the card's {name} is empty"
    assert mixer.name.isidentifier(), f"the name {mixer.name!r} is not an identifier"
    assert mixer.name == mixer.name.lower(), f"the name {mixer.name!r} is not lower case"
    for name, info in mixer.Config.model_fields.items():
        assert info.description, f"option {name!r} has no description"
    letters = dict.fromkeys([*_letters(case.decoder(mixer), torch.float32), *mixer.Config.model_fields], 2)
    for name in ("parameters", "kv_bytes", "in_flight_bytes"):
        formula = getattr(said, name)
        # Costs that no formula holds are said in words, but for the size of the cache.
        if name == "kv_bytes" or is_formula(formula):
            try:
                evaluate(formula, letters)
            except MixerzooError as error:
                raise AssertionError(f"the card's {name} cannot be evaluated: {error}") from error


def _letters(decoder: Decoder, dtype: torch.dtype) -> dict[str, float]:
    """What the letters of a card's formulas stand for: those of sizes, and options that are numbers."""
    shape = decoder.shape
    sizes = {
        "L": shape.num_steps,
        "P": shape.num_layers,
        "G": shape.num_kv_heads,
        "H": shape.num_heads,
        "d": shape.head_dim,
        "D": shape.hidden_size,
        "V": shape.vocab_size,
        "e": dtype.itemsize,
    }
    options = {n: v for n, v in decoder.mixer.config if isinstance(v, int | float) and not isinstance(v, bool)}
    return {**sizes, **options}


def _claimed(decoder: Decoder, name: str, dtype: torch.dtype) -> float | None:
    """An entry of the card, if it is a formula whose letters have values here."""
    formula, letters = getattr(decoder.mixer.card, name), _letters(decoder, dtype)
    options = type(decoder.mixer.config).model_fields.keys() - letters.keys()
    # The letters are those of grouped-query attention, and an option may be no number.
    if decoder.shape.latent_dim or not is_formula(formula) or options & names_in(formula):
        return None
    return evaluate(formula, letters)
