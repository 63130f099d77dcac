"""Finds mixer plugins through entry points and says which distribution each mixer comes from."""

from __future__ import annotations

import functools
import importlib
import logging
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import metadata
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pluggy
from pydantic import PydanticUserError

from mixerzoo.errors import MixerError, PluginError, did_you_mean, error_line, visible
from mixerzoo.mixer import hookspecs
from mixerzoo.mixer.base import API_VERSION, Mixer
from mixerzoo.mixer.card import MixerCard, MixerConfig
from mixerzoo.mixer.plugin_guard import guarded
from mixerzoo.mixer.version_1 import CHANGES, sign_of_version_1

logger = logging.getLogger(__name__)

#: Stands for the distribution of an entry point that has none.
UNKNOWN = "unknown"
#: The distribution whose mixers keep their names, whoever else wants them.
_BUILT_IN = hookspecs.PROJECT
#: What a mixer may be called: the name is typed in recipes and commands and becomes part of file names.
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class MixerEntry:
    """A registered mixer and where it comes from.

    Attributes:
        mixer: the class.
        distribution: name of the installed distribution, e.g. ``"mixerzoo"``.
        version: that distribution's version.
        plugin: ``"distribution:entry point"``.
    """

    mixer: type[Mixer]
    distribution: str
    version: str
    plugin: str


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded; the others work on.

    Attributes:
        plugin: ``"distribution:entry point"``.
        reason: the failure in one line.
        details: the whole traceback.
    """

    plugin: str
    reason: str
    details: str


class Registry:
    """The mixers of a set of entry points, by name.

    Args:
        points: entry points to load; each names a module whose hooks are marked with
            ``mixerzoo.hookimpl``.

    Attributes:
        entries: the mixers that can be asked for.
        clashes: those that share a name; none of them can be asked for.
        overshadowed: those that have the name of a built-in one, which stays what it is.
        broken: the plugins that could not be loaded.
        changes: of each plugin that changed something of the process while it was loaded, what that was, in words.
    """

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self.entries: dict[str, MixerEntry] = {}
        self.clashes: dict[str, list[MixerEntry]] = {}
        self.overshadowed: dict[str, list[MixerEntry]] = {}
        self.broken: list[BrokenPlugin] = []
        self.changes: dict[str, list[str]] = {}
        self._offers: dict[str, list[MixerEntry]] = {}
        self._told: set[str] = set()
        self._modules: dict[tuple[str, str], str] = {}
        # The same distribution can be seen twice on sys.path (an editable install and its build folder).
        unique = {(_distribution(point)[0], point.name, point.value): point for point in points}
        for _, point in sorted(unique.items()):
            self._load(point)
        for name, offers in self._offers.items():
            self._decide(name, offers)

    def _load(self, point: EntryPoint) -> None:
        distribution, version = _distribution(point)
        plugin = f"{distribution}:{visible(point.name)}"
        changes: list[str] = []
        try:
            with guarded(plugin, "being loaded", changes):
                self._check_point(point, distribution, plugin)
                offered = _offered(point.load(), plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a plugin may fail in any way; the others must work on
            self.broken.append(broken_plugin(plugin, error))
            return
        finally:
            if changes:
                self.changes[plugin] = changes
        for mixer in offered:
            self._offers.setdefault(mixer.name, []).append(MixerEntry(mixer, distribution, version, plugin))

    def _decide(self, name: str, offers: list[MixerEntry]) -> None:
        """Whose a name is: that of the only one who offers it, or of the built-in mixer."""
        built_in = [entry for entry in offers if entry.distribution == _BUILT_IN]
        if len(offers) > 1 and len(built_in) != 1:
            self.clashes[name] = offers
            return
        self.entries[name] = (built_in or offers)[0]
        if len(offers) > 1:
            self.overshadowed[name] = [entry for entry in offers if entry not in built_in]

    def _check_point(self, point: EntryPoint, distribution: str, plugin: str) -> None:
        module, colon, inner = (part.strip() for part in point.value.partition(":"))
        if not all(part.isidentifier() for part in module.split(".")):
            raise PluginError(
                f"its entry point {point.value!r} is not the name of a module; write it as in "
                f'{point.name} = "my_package.my_mixer"'
            )
        if colon:
            raise PluginError(
                f"its entry point {point.value!r} names {inner!r} in a module; it must name the module alone: "
                f'{point.name} = "{module}"'
            )
        first = self._modules.setdefault((distribution, module), plugin)
        if first != plugin:
            raise PluginError(f"its module {module!r} is that of {first} already; remove one of the two entry points")

    def get(self, name: str) -> MixerEntry:
        """The entry of a mixer.

        Where plugins offer another one under the name of a built-in mixer, that is logged as a warning, once.

        Raises:
            MixerError: no installed plugin offers it; says the nearest name and which plugins failed.
            PluginError: several plugins offer it.
        """
        entry = self.entries.get(name)
        if entry is not None:
            if name in self.overshadowed and name not in self._told:
                self._told.add(name)
                logger.warning("%s", self.clash(name))
            return entry
        if name in self.clashes:
            raise PluginError(self.clash(name))
        near = did_you_mean(name, self.entries)
        offered = [plugin for plugin in self.broken if f"mixer {name!r}" in plugin.reason]
        message = f"no mixer is named {name!r}"
        if not offered:
            message += f"{near}; known: {', '.join(self.entries) or 'none'}"
        # It may have been in any of these, but where a known name is near it was a slip.
        if failed := offered or ([] if near else list(self.broken)):
            reasons = "; ".join(f"{plugin.plugin}: {plugin.reason}" for plugin in failed)
            message += f". Plugins that could not be loaded: {reasons}"
        raise MixerError(message)

    def clash(self, name: str) -> str:
        """What is wrong with a name in `clashes` or `overshadowed`, and what would put it right."""
        if name in self.overshadowed:
            others = " and ".join(entry.plugin for entry in self.overshadowed[name])
            return (
                f"{name!r} is the built-in mixer; the one of this name that is offered by {others} cannot be used; "
                "rename it"
            )
        entries = self.clashes[name]
        plugins = " and ".join(entry.plugin for entry in entries)
        one_package = len({entry.distribution for entry in entries}) == 1
        remedy = "rename one of them" if one_package else "uninstall one of them, or rename its mixer"
        return f"several plugins offer a mixer named {name!r}: {plugins}; {remedy}"


def normal_name(distribution: str) -> str:
    """The name of a distribution as installers compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def broken_plugin(plugin: str, error: BaseException) -> BrokenPlugin:
    """A plugin that failed with an error."""
    return BrokenPlugin(plugin, error_line(error), visible("".join(traceback.format_exception(error))))


def _distribution(point: EntryPoint) -> tuple[str, str]:
    # What is left of a half-removed package has neither name nor version.
    name, version = (point.dist and point.dist.name) or UNKNOWN, (point.dist and point.dist.version) or "0"
    return visible(name), visible(version)


def _offered(module: ModuleType, plugin: str) -> list[type[Mixer]]:
    # A manager of its own, so that no plugin sees what is left of another that failed.
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    known = [name for name in vars(hookspecs) if name.startswith("mixerzoo_")]
    try:
        manager.register(module, plugin)
    except pluggy.PluginValidationError as error:
        raise PluginError(
            "mixerzoo_mixers must be a plain function without arguments: def mixerzoo_mixers()"
        ) from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        callers = manager.get_hookcallers(module) or []
        unknown = next(caller.name for caller in callers if not caller.has_spec())
        raise PluginError(
            f"unknown hook {unknown!r}{did_you_mean(unknown, known)}; the hooks are: {', '.join(known)}"
        ) from error
    offered = [mixer for hook in manager.hook.mixerzoo_mixers.get_hookimpls() for mixer in _listed(hook.function())]
    if not offered:
        raise PluginError("it offers no mixer; mark a function `mixerzoo_mixers` with mixerzoo.hookimpl")
    by_name: dict[str, type[Mixer]] = {}
    for mixer in offered:
        _check_class(mixer)
        other = by_name.setdefault(mixer.name, mixer)
        if other is not mixer:
            classes = f"{other.__qualname__} and {mixer.__qualname__}"
            raise PluginError(f"two of its mixers are named {mixer.name!r}: {classes}; rename one of them")
    return list(by_name.values())


def _listed(returned: Any) -> Iterable[Any]:
    if isinstance(returned, str | Mapping) or not isinstance(returned, Iterable):
        example = returned.__name__ if isinstance(returned, type) else "MyMixer"
        raise PluginError(f"mixerzoo_mixers returned {returned!r}; it must return a list of classes, e.g. [{example}]")
    return returned


def _check_class(mixer: Any) -> None:
    if not (isinstance(mixer, type) and issubclass(mixer, Mixer)):
        raise PluginError(f"mixerzoo_mixers returned {mixer!r}, which is not a subclass of mixerzoo.Mixer")
    for attribute in ("name", "card"):
        if not hasattr(mixer, attribute):
            raise PluginError(f"mixer class {mixer.__qualname__} has no {attribute!r}")
    if not (isinstance(mixer.name, str) and _NAME.fullmatch(mixer.name)):
        raise PluginError(
            f"mixer class {mixer.__qualname__} is named {mixer.name!r}; a name is made of letters, digits and "
            'underscores and begins with a letter, e.g. "gated_sum"'
        )
    if type(mixer.api_version) is not int:
        raise PluginError(
            f"mixer {mixer.name!r}: api_version is {mixer.api_version!r}; it must be a whole number: "
            f"api_version = {API_VERSION}"
        )
    # What follows is true of this version alone.
    if sign := sign_of_version_1(mixer):
        raise PluginError(f"mixer {mixer.name!r} was written for version 1 of the mixer API ({sign}); {CHANGES}")
    if mixer.api_version != API_VERSION:
        newer = "mixerzoo" if mixer.api_version > API_VERSION else "the plugin"
        raise PluginError(
            f"mixer {mixer.name!r} was written for version {mixer.api_version} of the mixer API, and this "
            f"mixerzoo has version {API_VERSION}; upgrade {newer}"
        )
    if not (isinstance(mixer.Config, type) and issubclass(mixer.Config, MixerConfig)):
        raise PluginError(f"mixer {mixer.name!r}: Config is {mixer.Config!r}, not a subclass of mixerzoo.MixerConfig")
    try:
        mixer.Config.model_json_schema()  # of which that of all recipes is made
    except PydanticUserError as error:
        raise PluginError(f"mixer {mixer.name!r}: its options have no JSON Schema: {error.message}") from error
    if not isinstance(mixer.reference_keys, set | frozenset):
        raise PluginError(f"mixer {mixer.name!r}: reference_keys is {mixer.reference_keys!r}; it must be a frozenset")
    _check_card(mixer)
    missing = sorted(getattr(mixer, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"mixer {mixer.name!r} does not implement: {', '.join(missing)}")


def _check_card(mixer: type[Mixer]) -> None:
    card: Any = mixer.card
    if not isinstance(card, MixerCard):
        raise PluginError(f"mixer {mixer.name!r}: card is {card!r}, not a mixerzoo.MixerCard")
    for key, hint in get_type_hints(MixerCard).items():
        value, kind = getattr(card, key), get_origin(hint) or hint
        wrong = f"mixer {mixer.name!r}: card.{key} is {value!r}"
        if kind is Literal and value not in get_args(hint):
            known = get_args(hint)
            raise PluginError(f"{wrong}{did_you_mean(str(value), known)}; known: {', '.join(known)}")
        if kind is str and not isinstance(value, str):
            raise PluginError(f"{wrong}; it must be text")
        if kind is Mapping and not (
            isinstance(value, Mapping) and all(isinstance(text, str) for text in (*value, *value.values()))
        ):
            raise PluginError(f"{wrong}; it must map names to text")
    shown = {key: _shown(getattr(card, key)) for key in (field.name for field in fields(MixerCard))}
    if any(shown[key] != getattr(card, key) for key in shown):
        # Whoever prints a card may print it as it is.
        mixer.card = replace(card, **shown)


def _shown(value: Any) -> Any:
    """An entry of a card with its control characters written out."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(key): _shown(text) for key, text in value.items()}
    return value


@functools.cache
def load_registry() -> Registry:
    """The mixers installed in this environment, loaded once."""
    # What plugins import of us changes the process too (a library that reads YAML, the filters of warnings), and that
    # is not theirs.
    importlib.import_module("mixerzoo.mixer.choice")
    points, unreadable = _installed()
    registry = Registry(points)
    registry.broken += unreadable
    return registry


def _installed() -> tuple[list[EntryPoint], list[BrokenPlugin]]:
    """Our entry points of all distributions, and the distributions whose entry points cannot be read.

    `importlib.metadata.entry_points` reads all at once, and fails with the first that is damaged.
    """
    points: list[EntryPoint] = []
    unreadable: list[BrokenPlugin] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        name = distribution.name or ""
        normal = normal_name(name)
        # The first on the path is the one that is imported.
        if normal and normal in seen:
            continue
        seen.add(normal)
        try:
            points += distribution.entry_points.select(group=hookspecs.PROJECT)
        except Exception as error:  # noqa: BLE001  what is damaged there may fail in any way
            if f"[{hookspecs.PROJECT}]" in (distribution.read_text("entry_points.txt") or ""):
                unreadable.append(broken_plugin(f"{visible(name) or UNKNOWN}:entry_points.txt", error))
    return points, unreadable
