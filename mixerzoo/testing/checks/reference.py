"""Chapter 10: the mixer is the method, as a reference says that was written from its equations."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from mixerzoo.checkpoints import load_checkpoint, load_config
from mixerzoo.errors import MixerzooError
from mixerzoo.mixer import Mixer, ParameterRole
from mixerzoo.model import Decoder, parameter_roles
from mixerzoo.testing.against import Drawn, Reference, trace
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import assert_close, clause
from mixerzoo.testing.checks.accounting import assert_in_flight_bytes, assert_kv_bytes
from mixerzoo.testing.checks.persistence import registered
from mixerzoo.testing.checks.weights import shown_weights
from mixerzoo.testing.observe import largest_state, observed
from mixerzoo.testing.starts import assert_standard, standardised, starting_values


@clause("10.1", "deadly", needs=("begin",), large=("tall",))
@torch.no_grad()
def reference_logits(mixer: type[Mixer], case: Case, reference: Reference) -> None:
    """In float64, logits and what the cache stores are those of the naive reference.

    Sees: float64; up to twelve tokens, or one row; growing cache.
    Blind: mistakes that the reference makes too.
    """
    _assert_logits(case.decoder(mixer), case, reference)


#: Tokens that a reference, which takes one after another, is given of several rows.
_TOKENS = 12


def _assert_logits(decoder: Decoder, case: Case, reference: Reference) -> None:
    tokens = case.tokens()[: max(1, _TOKENS // case.num_tokens)]
    cache = decoder.new_cache(tokens.size(0))
    # By what is stored, slot and first token: where steps write one slot in turn, tokens come one by one, and of each
    # token the last write stays.
    stored: dict[tuple[str, int], dict[int, Tensor]] = {}
    append = cache.append

    def recording(slot: int, k: Tensor | None, v: Tensor | None) -> Any:
        for what, new in (("keys", k), ("values", v)):
            if new is not None:
                stored.setdefault((what, slot), {})[cache.length] = new
        return append(slot, k, v)

    cache.append = recording  # type: ignore[method-assign]
    logits = decoder(tokens, cache)
    traces = [trace(decoder, reference, row) for row in tokens.tolist()]
    assert_close(logits, torch.stack([t.logits for t in traces]), "logits against the reference's")
    if decoder.shape.latent_dim:
        # The cache stores latents, of which keys and values are made.
        return
    for step in range(len(decoder.plan.order)):
        for what, expected in (
            ("keys", [t.keys[step] for t in traces]),
            ("values", [t.values[step] for t in traces]),
        ):
            if (what, step) not in stored:
                assert not any(expected), f"step {step} stores no {what}, the reference does"
                continue
            # [B, T, G, d], then as the cache has it.
            stack = torch.stack([torch.stack([torch.stack(heads) for heads in row]) for row in expected])
            ours = torch.cat(list(stored[what, step].values()), dim=2)
            assert_close(ours, stack.transpose(1, 2), f"stored {what} of step {step} against the reference's")


@clause(
    "10.2",
    "deadly",
    needs=("in_flight_bytes", "flops_per_token", "sources", "plan", "roles"),
    large=("rows", "deep", "wide"),
)
def reference_accounts(mixer: type[Mixer], case: Case, reference: Reference) -> None:
    """Bytes in flight, FLOPs, sources, fields of the plan and roles are those that the reference says.

    Sees: built, not run.
    Blind: figures that the reference does not count.
    """
    _assert_accounts(case.decoder(mixer), reference)


def _assert_accounts(decoder: Decoder, reference: Reference) -> None:
    ours = decoder.mixer
    if reference.in_flight_bytes is not None:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            expected = reference.in_flight_bytes(ours, dtype)
            said = ours.in_flight_bytes(dtype)
            assert said == expected, (
                f"in_flight_bytes({dtype}) is {said}, the reference counts {expected}; a state of one token is largest "
                f"{_largest_state(decoder.to(dtype))}"
            )
    if reference.flops_per_token is not None:
        expected, said = reference.flops_per_token(ours), ours.flops_per_token()
        assert said == expected, f"flops_per_token() is {said}, the reference counts {expected}"
    if reference.sources is not None:
        for site in ours.shape.sites():
            named, counted = ours.sources(site), reference.sources(ours, site)
            assert named == counted, f"sources({site}) names {named}, the reference {counted}"
    if reference.plan is not None:
        for field, wanted in reference.plan(ours).items():
            planned = getattr(decoder.plan, field)
            assert planned == wanted, f"plan().{field} is {planned!r}, the reference says {wanted!r}"
    if reference.roles is not None:
        expected_roles, roles = reference.roles(ours), parameter_roles(ours)
        for name in expected_roles:
            assert name in roles, f"there is no parameter {name!r}, of which the reference knows the role"
        for name, role in roles.items():
            wanted = expected_roles.get(name, ParameterRole())
            assert role == wanted, f"the role of {name} is {role}, the reference says {wanted}"


def _largest_state(decoder: Decoder) -> str:
    with torch.no_grad(), observed(decoder.mixer) as calls:
        decoder(torch.zeros(1, 1, dtype=torch.int64))
    return largest_state(calls)


@clause("10.3", "once", needs=("checkpoints",))
@torch.no_grad()
def reference_checkpoints(mixer: type[Mixer], case: Case, reference: Reference) -> None:
    """Checkpoints of the method's reference implementation are read, and give its logits.

    Sees: float64; the author's files.
    Blind: checkpoints that are not at hand.
    """
    for directory in reference.checkpoints:
        expected = load_file(directory / "expected.safetensors")
        orders = [name for name in expected if name.startswith("logits.")]
        assert orders, f"{directory} holds no expected logits"
        for name in orders:
            k_norm: Any = name.removeprefix("logits.")
            with registered(mixer):
                normed = load_config(directory)[0].has_key_norms
                decoder = load_checkpoint(directory, dtype=torch.float64, k_norm=k_norm if normed else None)
            found = type(decoder.mixer)
            assert found is mixer, f"{directory.name} is read as a checkpoint of {found.name!r}"
            logits = decoder(expected["input_ids"].long())
            assert_close(logits, expected[name], f"logits of {directory.name}, {k_norm}", tolerance=1e-9)


@clause("10.4", needs=("initial",))
@torch.no_grad()
def reference_start(mixer: type[Mixer], case: Case, reference: Reference) -> None:
    """Parameters that start at known values start at those; drawn ones have the known mean and standard deviation.

    Sees: initial values; of 16 seeds where they are drawn.
    Blind: those that the reference does not name, and other moments of what is drawn.
    """
    _assert_start(case.decoder(mixer, perturbed=False), case, reference)


def _assert_start(decoder: Decoder, case: Case, reference: Reference) -> None:
    assert reference.initial is not None
    expected, parameters = reference.initial(decoder.mixer), dict(decoder.mixer.named_parameters())
    drawn = {}
    for name, value in expected.items():
        assert name in parameters, f"there is no parameter {name!r}, of which the reference knows the initial value"
        if isinstance(value, Drawn):
            drawn[name] = value
            continue
        wanted = torch.as_tensor(value, dtype=torch.float64).expand_as(parameters[name])
        # Initial values are rounded to float32.
        assert_close(parameters[name], wanted, f"the initial {name}", tolerance=1e-6)
    together = []
    for name, values in starting_values(decoder, drawn, case.seed).items():
        mean, std = drawn[name].mean, drawn[name].std
        together.append(standardised(values, mean, decoder.config.init_std if std is None else std, f"initial {name}"))
        assert_standard(together[-1], f"initial {name}")
    if together:
        # What is off a little in each shows in all of them.
        assert_standard(torch.cat(together), f"initial {', '.join(drawn)}")


@clause("10.5", "once", needs=("cases",), named=True)
@torch.no_grad()
def reference_cases(mixer: type[Mixer], case: Case, reference: Reference) -> None:
    """On the cases that the author names, 10.1, 10.2, 10.4, 4.1 and 4.2 hold.

    Sees: as 10.1, 10.2, 10.4, 4.1 and 4.2.
    Blind: cases that nobody names.
    """
    decoder = case.decoder(mixer)
    _assert_logits(decoder, case, reference)
    _assert_accounts(decoder, reference)
    if reference.initial is not None:
        _assert_start(case.decoder(mixer, perturbed=False), case, reference)
    assert_kv_bytes(decoder.to(torch.float32), case)
    assert_in_flight_bytes(decoder, case)


@clause("10.6", "once", needs=("refused",))
def reference_refusals(mixer: type[Mixer], case: Case, reference: Reference) -> None:
    """What the author says cannot be is refused in words.

    Sees: options and sizes, not run.
    Blind: what nobody says cannot be.
    """
    for named in reference.refused:
        # Outside: a case that is no decoder at all says nothing of the mixer.
        config = named.config()
        try:
            with torch.device("meta"):
                Decoder(config, mixer, mixer.Config.model_validate(dict(named.options)))
        except (MixerzooError, ValidationError):
            continue
        raise AssertionError(f"options {dict(named.options)} are not refused on {dict(named.model)}")


@clause("10.7", needs=("shown",))
@torch.no_grad()
def reference_weights(mixer: type[Mixer], case: Case, reference: Reference) -> None:
    """Weights are shown at the calls that the reference names, and at no others.

    Sees: float64; without a cache.
    Blind: which of several sites shows them, and what they are (4.7).
    """
    decoder = case.decoder(mixer)
    assert reference.shown is not None
    named = set(reference.shown(decoder.mixer))
    showing = {weights.hook for weights in shown_weights(decoder.mixer, decoder, case.tokens()).values()}
    assert showing == named, f"weights are shown at {sorted(showing)}, the reference says at {sorted(named)}"
