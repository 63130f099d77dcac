"""Cases that every mixer is held to, whatever is drawn: an ordinary decoder, default options, long sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, find, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixerzoo.mixer import Mixer, MixerConfig
from mixerzoo.testing.case import Case
from mixerzoo.testing.drawn_options import Overrides, choices, options
from mixerzoo.testing.refusal import refusal

#: Fields of ordinary decoders, with grouped and with latent attention; a mixer must serve one of them.
ORDINARY: tuple[dict[str, Any], ...] = tuple(
    {"hidden_size": 8, "intermediate_size": 8, "num_layers": 4, "num_heads": 4, **attention}
    for attention in (
        {"num_kv_heads": 2, "head_dim": 4},
        {
            "attention": "mla",
            "mla": {
                "kv_lora_rank": 6,
                "qk_nope_head_dim": 2,
                "qk_rope_head_dim": 2,
                "v_head_dim": 2,
                "q_lora_rank": None,
            },
        },
    )
)

#: How sequences are cut, and a position in each that lies inside of blocks: one sequence fills blocks of 32, one
#: those of 16, one those of 8.
_LONG = (((17, 1, 22), 21), ((9, 15), 13), ((5, 1, 6), 6))


def default_options(config: type[MixerConfig], overrides: Overrides | None = None) -> dict[str, Any]:
    """The fewest options that must be given, at the simplest values that `overrides` or their types allow."""
    needed = {name for name, info in config.model_fields.items() if info.is_required()} | (overrides or {}).keys()
    if not needed:
        return {}
    return {name: value for name, value in _simplest(options(config, overrides)).items() if name in needed}


def ordinary_cases(mixer: type[Mixer], overrides: Overrides | None = None) -> list[Case]:
    """Cases on ordinary decoders: the defaults first, and every choice of every option in one of them at least.

    Those that the mixer refuses are left out.

    Args:
        mixer: the mixer under test.
        overrides: strategies for some of its options.

    Raises:
        MixerzooError: nothing can be drawn for an option.
    """
    defaults = default_options(mixer.Config, overrides)
    free = {name: values for name, values in choices(mixer.Config).items() if name not in defaults}
    rounds = max([len(_LONG), *(1 + len(values) for values in free.values())])
    found: list[Case] = []
    for number in range(rounds):
        chunks, pick = _LONG[number % len(_LONG)]
        changed = {name: values[number - 1] for name, values in free.items() if 0 < number <= len(values)}
        # All at once where they go together, else one at a time.
        for chosen in ([changed], [{name: value} for name, value in changed.items()]):
            built = [
                Case(options={**defaults, **some}, chunks=chunks, seed=number, pick=pick, training=number % 2 == 0)
                for some in chosen
            ]
            served = [case for case in (_on_ordinary(mixer, case) for case in built) if case is not None]
            found += served
            if served:
                break
    return found


def smaller(mixer: type[Mixer], case: Case) -> Iterator[Case]:
    """Cases with fewer tokens, layers or rows, one at a time and the smallest first, that the mixer does not refuse."""
    layers, loop = case.model["num_layers"], case.model.get("loop", {})
    lengths = (2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 64, 128, 256, 1024, 2048)
    changes: list[dict[str, Any]] = [{"chunks": (n - 1, 1)} for n in lengths if n < case.num_tokens]
    if loop:
        changes.append({"model": {**case.model, "loop": {}}})
    fewest = loop.get("prelude", 0) + loop.get("coda", 0) + 1
    depths = [n for n in (*range(1, 9), 12, 16, 20, 24, 32, 48) if fewest <= n < layers]
    changes += [{"model": {**case.model, "num_layers": n}} for n in depths]
    changes += [{"batch_size": n} for n in (2, 8, 16) if n < case.batch_size]
    changes += [{"batch_size": 1}] * (case.batch_size > 1) + [{"chunks": (case.num_tokens,)}] * (len(case.chunks) > 1)
    for change in changes:
        changed = replace(case, **change)
        if is_served(mixer, changed):
            yield changed


def _on_ordinary(mixer: type[Mixer], case: Case) -> Case | None:
    """The case on the first ordinary decoder that the mixer does not refuse."""
    tried = (replace(case, model=model) for model in ORDINARY)
    return next((case for case in tried if is_served(mixer, case)), None)


def is_served(mixer: type[Mixer], case: Case) -> bool:
    """Whether the mixer does not refuse the case in words.

    Args:
        mixer: the mixer under test.
        case: any.
    """
    try:
        config = case.config()
        mixer.Config.model_validate(dict(case.options))
    except ValidationError:
        return False
    return refusal(mixer, config, case.options) is None


def _simplest(strategy: st.SearchStrategy[Any]) -> Any:
    quiet = settings(database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    return find(strategy, lambda value: True, settings=quiet)
