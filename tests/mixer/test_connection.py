"""Mixers whose sites have a connection each."""

from __future__ import annotations

import pytest

from mixerzoo import ConnectionMixer


@pytest.mark.parametrize("name", ["read", "write"])
def test_what_compiled_layers_would_not_call_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Own is a ConnectionMixer.*has a {name} of its own; put it into the conn"):
        type("Own", (ConnectionMixer,), {name: lambda self, *arguments: arguments[0]})
