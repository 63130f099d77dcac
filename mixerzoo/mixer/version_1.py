"""Mixers that were written for version 1 of the interface: how they are known, and what their authors change."""

from __future__ import annotations

import inspect

from mixerzoo.mixer.base import API_VERSION, Mixer

#: What the author of such a mixer changes; the page has the same, with examples.
CHANGES = (
    f"this mixerzoo has version {API_VERSION}. Change: mix_raw_kv, mix_kv and depth_kv take (state, call); call has "
    "site, q, k, v and rotate; needs_own_kv and separate_inputs are fields of what plan() returns, as in "
    "dataclasses.replace(super().plan(), needs_own_kv=True), and so is hooks, which takes the place of defines(); "
    "Plan(order, k_slot, v_slot, windows) is Plan.borrowing(…), and latent_sources is v_reads; derive from "
    f"Mixer[Config] or AttentionMixer[Config]; then set api_version = {API_VERSION}. The page docs/interface-2.md has "
    "each change. Or install an older mixerzoo"
)
_HOOKS = ("mix_raw_kv", "mix_kv", "depth_kv")
_FLAGS = ("defines", "needs_own_kv", "separate_inputs")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def sign_of_version_1(mixer: type[Mixer]) -> str | None:
    """What of a class only version 1 knew, in words, or None.

    A class that names no version inherits the newest one's number, so that the number alone does not tell.
    """
    if mixer.api_version == 1:
        return "its api_version is 1"
    if mixer.api_version != API_VERSION:
        return None
    for name in _HOOKS:
        hook = getattr(mixer, name)
        if hook is getattr(Mixer, name) or not inspect.isfunction(hook):
            continue
        parameters = inspect.signature(hook).parameters.values()
        # self, state, site and more; what has a default is nothing that the decoder passes.
        taken = [p.name for p in parameters if p.kind in _POSITIONAL and p.default is p.empty]
        if len(taken) > 3:
            return f"it has {name}({', '.join(taken)})"
    flag = next((name for name in _FLAGS if hasattr(mixer, name)), None)
    return None if flag is None else f"it has {flag}"
