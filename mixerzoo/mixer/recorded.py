"""Which plugin a mixer comes from, as checkpoints and runs record it, and the mixer of such a record."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from mixerzoo.errors import MixerError, PluginError
from mixerzoo.mixer.card import MixerConfig
from mixerzoo.mixer.choice import MixerChoice
from mixerzoo.mixer.hookspecs import PROJECT
from mixerzoo.mixer.registry import UNKNOWN, MixerEntry, Registry, normal_name

logger = logging.getLogger(__name__)

#: What a distribution and its version may be called.
_DISTRIBUTION = re.compile(r"[A-Z0-9]|[A-Z0-9][A-Z0-9._-]{,98}[A-Z0-9]", re.ASCII | re.IGNORECASE)
_RELEASE = re.compile(r"[A-Z0-9.!+_-]{,98}", re.ASCII | re.IGNORECASE)


def plugin_record(registry: Registry, name: str, options: MixerConfig) -> dict[str, Any]:
    """What a file records of where a mixer comes from, for `recorded_entry`.

    Args:
        registry: of the installed mixers.
        name: of the mixer.
        options: its options. Mixers among them that are not of its own distribution are recorded too.

    Raises:
        MixerError: it is not installed.
        PluginError: several plugins offer it.
    """
    entry = registry.get(name)
    record: dict[str, Any] = {"distribution": entry.distribution, "version": entry.version}
    parts = {part.name: plugin_record(registry, part.name, part.options) for part in _parts(options)}
    others = {
        part: origin
        for part, origin in parts.items()
        if origin["distribution"] != entry.distribution or "parts" in origin
    }
    return {**record, "parts": others} if others else record


def _parts(value: Any) -> Iterator[MixerChoice]:
    """The mixers that are chosen in options."""
    if isinstance(value, MixerChoice):
        yield value
    elif isinstance(value, MixerConfig):
        for option in vars(value).values():
            yield from _parts(option)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)


def recorded_entry(registry: Registry, name: str, plugin: Any) -> MixerEntry:
    """The entry of a mixer that a file names together with the plugin that it came from.

    Another plugin's mixer of that name is taken where the recorded plugin is installed and offers none of it any more,
    with a warning; a file that records no plugin gets whichever mixer has the name.

    Args:
        registry: of the installed mixers.
        name: of the mixer.
        plugin: ``{"distribution": …, "version": …}`` as the file has it, or anything else. Its ``parts``, mixers among
            the options by name, are looked for too.

    Raises:
        MixerError: it is not installed, or only another plugin's of its name is; says what to install.
        PluginError: several plugins offer it.
    """
    origin = plugin if isinstance(plugin, dict) else {}
    parts = origin.get("parts")
    for part, record in parts.items() if isinstance(parts, dict) else ():
        recorded_entry(registry, part, record)
    distribution, release = origin.get("distribution"), origin.get("version")
    if not isinstance(distribution, str) or distribution == UNKNOWN or not _DISTRIBUTION.fullmatch(distribution):
        try:
            return registry.get(name)
        except MixerError as error:
            raise MixerError(f"{error}; which plugin it came from is not recorded") from error
    if any(_same(entry, distribution) for entry in registry.overshadowed.get(name, ())):
        raise PluginError(f"the mixer {name!r} comes from the plugin {distribution}, but {registry.clash(name)}")
    release = release if isinstance(release, str) and _RELEASE.fullmatch(release) else ""
    came = f"the mixer {name!r} comes from the plugin {distribution} {release}".strip()
    try:
        entry = registry.get(name)
    except MixerError as error:
        raise MixerError(f"{came}, {_state(distribution)}: {error}") from error
    if not _same(entry, distribution):
        _refuse_another(registry, entry, distribution, came)
        logger.warning("%s, which does not offer it any more; the one of %s is taken", came, entry.distribution)
    return entry


def _same(entry: MixerEntry, distribution: str) -> bool:
    """Whether an entry is of a distribution, as far as can be told."""
    if entry.distribution == UNKNOWN or normal_name(entry.distribution) == normal_name(distribution):
        return True
    # Where this package itself was installed under another name, its own mixers are still its own.
    return distribution == PROJECT and _installed(distribution) is None


def _state(distribution: str) -> str:
    installed = _installed(distribution)
    if installed is None:
        return f"which is not installed here (pip install {distribution})"
    return f"and version {installed} is installed here, but"


def _refuse_another(registry: Registry, entry: MixerEntry, distribution: str, came: str) -> None:
    """Refuse a mixer that merely has the name of the one that was recorded."""
    same = f"if it is the same mixer, change mixer_plugin.distribution to {entry.distribution}"
    other = f"the one of this name that is installed is offered by {entry.plugin}; {same}"
    if _installed(distribution) is None:
        raise MixerError(f"{came}, {_state(distribution)}: {other}")
    failed = [b for b in registry.broken if normal_name(b.plugin.partition(":")[0]) == normal_name(distribution)]
    if failed:
        reasons = "; ".join(f"{plugin.plugin}: {plugin.reason}" for plugin in failed)
        raise MixerError(f"{came}, which could not be loaded ({reasons}), and {other}")


def _installed(distribution: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
