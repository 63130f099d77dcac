"""The one hook that a plugin implements."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from mixerzoo.mixer.base import Mixer

#: Name of the entry-point group and of the pluggy project.
PROJECT = "mixerzoo"

hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a plugin's implementation of a hook.
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mixerzoo_mixers() -> Sequence[type[Mixer]]:
    """The mixer classes that this plugin offers."""
    return ()
