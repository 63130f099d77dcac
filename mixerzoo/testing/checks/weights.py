"""Chapter 4, too: the weights that a mixer shows are those that it applies."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mixerzoo.mixer import AttentionInputs, Mixer, MixingWeights, Site, State
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import assert_close, clause
from mixerzoo.testing.checks.gradients import TRIES
from mixerzoo.testing.observe import Call, Method, observed, wrapped


@clause("4.7")
@torch.no_grad()
def mixing_weights(mixer: type[Mixer], case: Case) -> None:
    """Weights shown for inspection, applied to their sources, give what the site gets, and know no later token.

    They are shown at every site that has several `sources`, or at none.

    Sees: float64; without a cache.
    Blind: mixers that show no weights at all; where steps write one slot in turn, all but the first token.
    """
    decoder = case.decoder(mixer)
    if decoder.plan.is_sequential:
        # It goes token by token, and each call shows the weights of one.
        case = replace(case, chunks=(1,))
    tokens = case.tokens()
    cut = 1 + case.pick % case.num_tokens
    shown = shown_weights(decoder.mixer, decoder, tokens)
    _shown_at_all_or_none(decoder.mixer, {told.site for told in shown.values() if told.site is not None})
    for where, (_, given, _, got) in shown.items():
        num_sources = len(given.sources)
        allowed = [(num_sources,), (*got.shape[:-1], num_sources)]
        assert tuple(given.weights.shape) in allowed, (
            f"{where}: weights {list(given.weights.shape)} for {num_sources} sources; it must be one of {allowed}"
        )
        for source in given.sources:
            assert source.shape == got.shape, f"{where}: a source {list(source.shape)} for {list(got.shape)}"
        if given.channels is not None:
            wanted = (num_sources, got.shape[-1])
            assert tuple(given.channels.shape) == wanted, (
                f"{where}: channels {list(given.channels.shape)} for {num_sources} sources; it must be {list(wanted)}"
            )
        assert_close(torch.stack(given.parts()).sum(0), got, f"{where}: weights applied to their sources")
    if cut == case.num_tokens:
        return
    changed = torch.cat([tokens[:, :cut], case.tokens(draw=1)[:, cut:]], dim=1)
    for where, (_, given, *_) in shown_weights(decoder.mixer, decoder, changed).items():
        before = shown[where].weights.weights
        if before.ndim > 1:
            what = f"{where}: weights of the first {cut} tokens after a change of later ones"
            assert_close(given.weights[..., :cut, :], before[..., :cut, :], what)
        else:
            assert_close(given.weights, before, f"{where}: weights after a change of tokens")


@clause("4.10")
@torch.no_grad()
def source_names(mixer: type[Mixer], case: Case) -> None:
    """A source that is shown for inspection under a site's name has the output of that site in it, and none of a later.

    Names are those of `MixingWeights`, one for each source, else those of `sources` where they are as many. Keys and
    values need not have in them what the attention that they are of gives.

    Sees: float64; without a cache; noise on what one sublayer gives, of more seeds where a source does not change.
    Blind: sources without names; keys and values under the name of a later layer; whether earlier outputs belong there.
    """
    unmoved = _unmoved(mixer, case)
    for seed in range(case.seed + 1, case.seed + TRIES):
        if not unmoved:
            return
        unmoved &= _unmoved(mixer, replace(case, seed=seed))
    assert not unmoved, f"{', '.join(sorted(unmoved))} does not change with what that site gives"


def _unmoved(mixer: type[Mixer], case: Case) -> set[str]:
    """The sources that do not change with the output of the site whose name they have; with a later one's none may."""
    decoder = case.decoder(mixer)
    if decoder.plan.is_sequential:
        case = replace(case, chunks=(1,))
    tokens, sites = case.tokens(), decoder.shape.sites()
    noisy = sites[case.pick % len(sites)]
    plain = shown_weights(decoder.mixer, decoder, tokens)
    if not plain:
        return set()
    noise = torch.randn(decoder.shape.hidden_size, generator=torch.Generator().manual_seed(case.seed))

    def disturbed(name: str, method: Method) -> Method:
        def write(state: State, site: Site, y: Tensor) -> State:
            return method(state, site, y + noise if site == noisy else y)

        return write if name == "write" else method

    with wrapped(decoder.mixer, disturbed):
        changed = shown_weights(decoder.mixer, decoder, tokens)
    unmoved = set()
    for where, (hook, given, site, _) in plain.items():
        named = given.named(() if site is None else decoder.mixer.sources(site))
        # What is written is shown as it was before the noise.
        if named is None or where not in changed or (hook == "write" and site == noisy):
            continue
        assert len(named) == len(given.sources), f"{where}: {len(named)} names for {len(given.sources)} sources"
        for name, before, after in zip(named, given.sources, changed[where].weights.sources, strict=True):
            what = f"{where}: a source that is shown as {'the embedding' if name is None else name}"
            assert name is None or name in sites, f"{what}, which is no site of the decoder"
            if name is None or noisy.number > name.number:
                assert_close(after, before, f"{what}, after a change of what {noisy} gives")
            elif name == noisy and hook != "mix_kv" and torch.equal(after, before):
                unmoved.add(what)
    return unmoved


def _shown_at_all_or_none(mixer: Mixer, told: set[Site]) -> None:
    """Weights are shown at each attention (each MLP) that has several sources, or at no attention (no MLP)."""
    for site in mixer.shape.sites():
        sources = mixer.sources(site)
        if len(sources) > 1 and site not in told:
            others = [other.number for other in told if other.branch == site.branch]
            assert not others, (
                f"weights are shown at sites {sorted(others)}, and none at {site.number}, an {site.branch} whose "
                f"`sources` are {list(sources)}"
            )


class ShownWeights(NamedTuple):
    """What a mixer shows of one call.

    Attributes:
        hook: name of the call.
        weights: what is shown.
        site: where; None for the head.
        got: what the call gave, or after `write` what is read next.
    """

    hook: str
    weights: MixingWeights
    site: Site | None
    got: Tensor


def shown_weights(mixer: Mixer, decoder: torch.nn.Module, tokens: Tensor) -> dict[str, ShownWeights]:
    """By the call in words: what the mixer shows there."""
    with observed(mixer) as calls:
        decoder(tokens)
    shown: dict[str, ShownWeights] = {}
    reads = [call for call in calls.made if call.name in ("read", "finish")]
    for call in calls.made:
        site: Site | None
        got: Tensor
        if call.name == "read":
            site, given, got = call.arguments[1], mixer.mixing_weights(*call.arguments), _read(call)
        elif call.name == "mix_kv":
            state, told = call.arguments
            site, given, got = told.site, mixer.mixing_weights(state, told.site, told), call.result[2]
        elif call.name == "write":
            # Every `write` follows the `read` of its site.
            site = call.arguments[1]
            given, got = mixer.write_weights(*call.arguments), _read(reads[site.number + 1])
        elif call.name == "finish":
            site, given, got = None, mixer.final_weights(*call.arguments), call.result
        else:
            continue
        if given is not None:
            shown[str(call)] = ShownWeights(call.name, given, site, got)
    return shown


def _read(call: Call) -> Tensor:
    result: Tensor = call.result.q if isinstance(call.result, AttentionInputs) else call.result
    return result
