"""Plugins are found, attributed to their distributions, and kept from hurting one another."""

from __future__ import annotations

import gc
import json
import locale
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import distributions, entry_points, version
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner

from mixerzoo import Mixer, load_registry
from mixerzoo.checkpoints import foreign_config as foreign
from mixerzoo.cli import app
from mixerzoo.errors import CONTROL, MixerError, PluginError
from mixerzoo.mixer import choice as mixer_choice
from mixerzoo.mixer.plugin_guard import guarded
from mixerzoo.mixer.registry import Registry
from mixerzoo.mixer.version_1 import CHANGES
from mixerzoo.process import state as process_state
from mixerzoo.process.state import float32_precision

ROOT = Path(__file__).parents[2]
Installer = Callable[..., Registry]

GOOD = """
    from mixerzoo import MixerCard, hookimpl
    from mixerzoo_plugins.residual import Residual


    class {cls}(Residual):
        name = {name!r}


    @hookimpl
    def mixerzoo_mixers():
        return [{cls}]
"""


def good(name: str) -> str:
    """Source of a plugin that offers one mixer."""
    return GOOD.format(cls="Own", name=name)


OWN = """
import dataclasses
from collections.abc import Callable
from typing import Any

from mixerzoo import MixerConfig, MixerError, hookimpl
from mixerzoo_plugins.residual import Residual


class Own(Residual):
    name = "own"
{body}


@hookimpl
def mixerzoo_mixers():
    return [Own]
"""


def own(body: str) -> str:
    """Source of a plugin that offers a mixer ``own``, a residual one but for what its body says."""
    return OWN.format(body=indent(dedent(body), "    "))


class SitePackages:
    """A folder on sys.path into which small distributions are put.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        distribution: str,
        source: str,
        *,
        release: str = "1.0",
        point: str | None = None,
        module: str | None = None,
        value: str | None = None,
    ) -> None:
        """Put a distribution of one module and one entry point into the folder.

        Args:
            distribution: its name.
            source: of the module; indentation does not matter.
            release: version of the distribution.
            point: name of the entry point; default: the distribution's.
            module: name of the module; default: made from the distribution's.
            value: of the entry point; default: the module.
        """
        module = module or distribution.replace("-", "_")
        (self.folder / f"{module}.py").write_text(dedent(source), encoding="utf-8")
        info = self.folder / f"{distribution.replace('-', '_')}-{release}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {release}\n")
        (info / "entry_points.txt").write_text(f"[mixerzoo]\n{point or distribution} = {value or module}\n")

    def registry(self) -> Registry:
        """The registry of what is installed in the folder alone."""
        found = distributions(path=[str(self.folder)])
        return Registry(point for d in found for point in d.entry_points if point.group == "mixerzoo")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SitePackages]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield SitePackages(tmp_path)
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def test_built_in_mixers_come_through_the_same_door() -> None:
    registry = load_registry()
    assert not [broken for broken in registry.broken if broken.plugin.startswith("mixerzoo:")]
    assert {"residual", "denseformer", "attn_res", "depth_attention"} <= set(registry.entries)
    for name, entry in registry.entries.items():
        assert entry.mixer.name == name
        assert issubclass(entry.mixer, Mixer)
        assert registry.get(name) is entry
        if entry.mixer.__module__.startswith("mixerzoo_plugins."):
            assert (entry.distribution, entry.version) == ("mixerzoo", version("mixerzoo"))
            # One of several that a plugin offers has the plugin's name.
            assert entry.plugin == f"mixerzoo:{entry.mixer.__module__.split('.')[1]}"
    assert load_registry() is registry


def test_a_plugin_is_attributed_to_its_distribution(site: SitePackages) -> None:
    site.install("good-plugin", good("own"), release="2.5", point="the-point")
    registry = site.registry()
    entry = registry.get("own")
    assert (entry.distribution, entry.version, entry.plugin) == ("good-plugin", "2.5", "good-plugin:the-point")
    assert entry.mixer.__name__ == "Own"
    assert registry.broken == []


def test_an_installed_plugin_joins_the_built_in_ones(site: SitePackages) -> None:
    site.install("good-plugin", good("own"))
    registry = Registry(entry_points(group="mixerzoo"))
    assert set(registry.entries) == {*load_registry().entries, "own"}


def test_one_distribution_may_have_many_entry_points(site: SitePackages) -> None:
    site.install("first", good("one"))
    (site.folder / "second.py").write_text(dedent(good("two")))
    (site.folder / "first-1.0.dist-info" / "entry_points.txt").write_text("[mixerzoo]\na = first\nb = second\n")
    assert {name: entry.plugin for name, entry in site.registry().entries.items()} == {
        "one": "first:a",
        "two": "first:b",
    }


def test_two_distributions_may_name_their_entry_points_alike(site: SitePackages) -> None:
    site.install("first", good("one"), point="mixer")
    site.install("second", good("two"), point="mixer")
    assert {entry.plugin for entry in site.registry().entries.values()} == {"first:mixer", "second:mixer"}


def test_a_duplicate_name_fails_only_when_it_is_asked_for(site: SitePackages) -> None:
    for distribution in ("first", "second", "third"):
        site.install(distribution, good("own"))
    site.install("fourth", good("other"))
    registry = site.registry()
    assert list(registry.entries) == ["other"]
    assert registry.get("other").distribution == "fourth"
    with pytest.raises(
        PluginError,
        match=r"several plugins offer a mixer named 'own': first:first and second:second and third:third; uninstall",
    ):
        registry.get("own")


def test_a_built_in_name_cannot_be_taken(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("thief", good("residual"))
    site.install("another", good("residual"))
    registry = Registry(entry_points(group="mixerzoo"))
    words = "'residual' is the built-in mixer; the one of this name that is offered by another:another and thief:thief"
    assert registry.get("residual") is registry.get("residual")
    assert registry.get("residual").plugin == "mixerzoo:residual"
    assert caplog.text.count(words) == 1
    # A checkpoint of the thief's is not one of ours.
    with pytest.raises(PluginError, match="'residual' comes from the plugin thief, but 'residual' is the built-in"):
        registry.get_recorded("residual", {"distribution": "thief", "version": "1.0"})
    assert registry.get_recorded("residual", {"distribution": "mixerzoo", "version": "0"}).plugin == "mixerzoo:residual"
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    listed = CliRunner().invoke(app, ["list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert words in listed.stdout
    found = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert found["overshadowed"] == [{"name": "residual", "plugins": ["another:another", "thief:thief"]}]
    assert found["clashes"] == []
    strict = CliRunner().invoke(app, ["list", "--strict"])
    assert strict.exit_code == 2
    assert words in strict.stderr


def test_list_shows_a_clash_and_strict_fails(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("first", good("own"))
    site.install("second", good("own"))
    site.install("third", good("other"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    clash = "several plugins offer a mixer named 'own': first:first and second:second"
    lenient = CliRunner().invoke(app, ["list"], env={"COLUMNS": "200"})
    assert lenient.exit_code == 0
    assert "other" in lenient.stdout
    assert clash in lenient.stdout
    found = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert found["clashes"] == [{"name": "own", "plugins": ["first:first", "second:second"]}]
    assert CliRunner().invoke(app, ["show", "other"]).exit_code == 0
    for arguments in (["list", "--strict"], ["show", "own"]):
        strict = CliRunner().invoke(app, arguments)
        assert strict.exit_code == 2
        assert clash in strict.stderr


def test_a_recorded_mixer_names_its_plugin(site: SitePackages) -> None:
    recorded = {"distribution": "somebody-s-mixers", "version": "3.1"}
    with pytest.raises(MixerError) as missing:
        load_registry().get_recorded("unheard_of", recorded)
    assert "comes from the plugin somebody-s-mixers 3.1, which is not installed here" in str(missing.value)
    assert "pip install somebody-s-mixers" in str(missing.value)
    site.install("somebody-s-mixers", good("renamed"), release="4.0")
    with pytest.raises(MixerError) as renamed:
        site.registry().get_recorded("unheard_of", recorded)
    assert "somebody-s-mixers 3.1, and version 4.0 is installed here, but: no mixer is named" in str(renamed.value)
    assert "pip install" not in str(renamed.value)
    damaged_records = ({"distribution": name} for name in (3, "unknown", "", " ", "../x", "a\x1bb", "a" * 1000, [], {}))
    for damaged in (None, "somebody", *damaged_records):
        with pytest.raises(MixerError, match="which plugin it came from is not recorded"):
            load_registry().get_recorded("unheard_of", damaged)


def test_one_distribution_seen_twice_is_one(site: SitePackages, tmp_path: Path) -> None:
    """An editable install and its build folder both lie on sys.path."""
    site.install("good-plugin", good("own"))
    found = [*distributions(path=[str(site.folder)]), *distributions(path=[str(site.folder)])]
    registry = Registry(point for d in found for point in d.entry_points)
    assert list(registry.entries) == ["own"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_does_not_exist", "No module named 'a_module_that_does_not_exist'"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "it would end the process, while being loaded: SystemExit(3)"),
        (
            """
            from mixerzoo import hookimpl
            @hookimpl
            def mixerzoo_mixers():
                raise RuntimeError("not today")
            """,
            "RuntimeError: not today",
        ),
        ("x = 1", "it offers no mixer; mark a function `mixerzoo_mixers` with mixerzoo.hookimpl"),
        (
            """
            from mixerzoo import hookimpl
            @hookimpl
            def mixerzoo_mixers():
                return []
            """,
            "it offers no mixer",
        ),
        (
            """
            def mixerzoo_mixers():
                return []
            """,
            "mark a function `mixerzoo_mixers` with mixerzoo.hookimpl",
        ),
        (
            """
            from mixerzoo import hookimpl
            @hookimpl
            def mixerzoo_mixer():
                return []
            """,
            "unknown hook 'mixerzoo_mixer' (did you mean 'mixerzoo_mixers'?); the hooks are: mixerzoo_mixers",
        ),
        (
            """
            from mixerzoo import hookimpl
            @hookimpl
            def mixerzoo_mixers(registry):
                return []
            """,
            "mixerzoo_mixers must be a plain function without arguments: def mixerzoo_mixers()",
        ),
        (
            """
            from mixerzoo import hookimpl
            @hookimpl
            def mixerzoo_mixers():
                return [int]
            """,
            "mixerzoo_mixers returned <class 'int'>, which is not a subclass of mixerzoo.Mixer",
        ),
        (
            """
            from mixerzoo import hookimpl
            @hookimpl
            def mixerzoo_mixers():
                return ["residual"]
            """,
            "mixerzoo_mixers returned 'residual', which is not a subclass of mixerzoo.Mixer",
        ),
        (
            """
            from mixerzoo import Mixer, hookimpl
            from mixerzoo_plugins.residual import Residual
            class Half(Mixer):
                name = "half"
                card = Residual.card
                def start(self, x, context):
                    return x
                def finish(self, state):
                    return state
            @hookimpl
            def mixerzoo_mixers():
                return [Half]
            """,
            "mixer 'half' does not implement: read, write",
        ),
        (
            """
            from mixerzoo import Mixer, hookimpl
            class Nameless(Mixer):
                pass
            @hookimpl
            def mixerzoo_mixers():
                return [Nameless]
            """,
            "mixer class Nameless has no 'name'",
        ),
        (
            """
            from mixerzoo import Mixer, hookimpl
            class Cardless(Mixer):
                name = "cardless"
            @hookimpl
            def mixerzoo_mixers():
                return [Cardless]
            """,
            "mixer class Cardless has no 'card'",
        ),
    ],
    ids=[
        "missing module", "syntax error", "exception", "exit", "hook fails", "no hook", "no mixer", "unmarked hook",
        "misspelt hook", "wrong argument", "not a mixer", "not a class", "abstract", "no name", "no card",
    ],
)  # fmt: skip
def test_a_broken_plugin_takes_nobody_down(site: SitePackages, source: str, reason: str) -> None:
    site.install("broken-plugin", source)
    site.install("a-good-one", good("before"))
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert sorted(registry.entries) == ["before", "later"]
    (broken,) = registry.broken
    assert broken.plugin == "broken-plugin:broken-plugin"
    assert_matches(reason, broken.reason)
    assert "Traceback (most recent call last)" in broken.details
    with pytest.raises(MixerError) as failure:
        registry.get("half")
    assert "Plugins that could not be loaded: broken-plugin:broken-plugin: " in str(failure.value)
    assert broken.reason in str(failure.value)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("None", "mixerzoo_mixers returned None; it must return a list of classes, e.g. [MyMixer]"),
        ("Own", "mixerzoo_mixers returned <class 'broken.Own'>; it must return a list of classes, e.g. [Own]"),
        ("'own'", "mixerzoo_mixers returned 'own'; it must return a list of classes, e.g. [MyMixer]"),
        ("{'own': 1}", "mixerzoo_mixers returned {'own': 1}; it must return a list of classes, e.g. [MyMixer]"),
        (
            "[Own, type('Other', (Own,), {})]",
            "two of its mixers are named 'own': Own and Other; rename one of them",
        ),
    ],
)
def test_what_a_hook_must_not_return(site: SitePackages, returned: str, reason: str) -> None:
    site.install("broken", dedent(good("own")).replace("return [Own]", f"return {returned}"))
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert [(broken.plugin, broken.reason) for broken in registry.broken] == [("broken:broken", reason)]
    assert list(registry.entries) == ["later"]


@pytest.mark.parametrize("returned", ["(Own,)", "[Own, Own]", "{Own}", "iter([Own])"])
def test_what_a_hook_may_return(site: SitePackages, returned: str) -> None:
    site.install("good", dedent(good("own")).replace("return [Own]", f"return {returned}"))
    registry = site.registry()
    assert (list(registry.entries), registry.broken, registry.clashes) == (["own"], [], {})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("name = 'My Mixer!'", "mixer class Own is named 'My Mixer!'; a name is made of letters, digits and"),
        ("name = 5", "mixer class Own is named 5; a name is made of letters"),
        ("name = None", "mixer class Own is named None; a name"),
        ("name = ''", "mixer class Own is named ''; a name"),
        ("name = '../own'", "mixer class Own is named '../own'; a name"),
        ("name = 'own\\n'", "mixer class Own is named 'own\\n'; a name"),
        ("api_version = '1'", "mixer 'own': api_version is '1'; it must be a whole number: api_version = 2"),
        ("api_version = None", "mixer 'own': api_version is None; it must be a whole number"),
        ("api_version = True", "mixer 'own': api_version is True; it must be a whole number"),
        ("card = {'title': 'Own'}", "mixer 'own': card is {'title': 'Own'}, not a mixerzoo.MixerCard"),
        ("card = None", "mixer 'own': card is None, not a mixerzoo.MixerCard"),
        (
            "card = dataclasses.replace(Residual.card, family='depth-weigthed')",
            "mixer 'own': card.family is 'depth-weigthed' (did you mean 'depth-weighted'?); known: residual, depth-w",
        ),
        ("card = dataclasses.replace(Residual.card, family=[])", "mixer 'own': card.family is []; known: residual"),
        ("card = dataclasses.replace(Residual.card, acts_on=5)", "mixer 'own': card.acts_on is 5; it must be text"),
        ("card = dataclasses.replace(Residual.card, paper=None)", "mixer 'own': card.paper is None; it must be text"),
        (
            "card = dataclasses.replace(Residual.card, dialects=['a'])",
            "mixer 'own': card.dialects is ['a']; it must map names to text",
        ),
        ("Config = dict", "mixer 'own': Config is <class 'dict'>, not a subclass of mixerzoo.MixerConfig"),
        ("Config = MixerConfig()", "mixer 'own': Config is MixerConfig(), not a subclass of mixerzoo.MixerConfig"),
        (
            "class Config(MixerConfig):\n    hook: Callable[[int], int] = print",
            "mixer 'own': its options have no JSON Schema: Cannot generate a JsonSchema",
        ),
        (
            "class Config(MixerConfig):\n    later: 'Undefined' = None",
            "mixer 'own': its options have no JSON Schema: `Config` is not fully defined",
        ),
        ("reference_keys = ['a']", "mixer 'own': reference_keys is ['a']; it must be a frozenset"),
    ],
)
def test_attributes_of_a_class_are_checked(site: SitePackages, body: str, reason: str) -> None:
    site.install("broken", own(body))
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert list(registry.entries) == ["later"]
    (broken,) = registry.broken
    assert broken.plugin == "broken:broken"
    assert broken.reason.startswith(reason)


def test_a_class_without_an_api_version_is_taken_for_the_installed_one(site: SitePackages) -> None:
    site.install("good", good("own"))
    assert "api_version" not in vars(site.registry().get("own").mixer)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("module:Own", "its entry point 'module:Own' names 'Own' in a module; it must name the module alone: p ="),
        ("module:mixerzoo_mixers", "its entry point 'module:mixerzoo_mixers' names 'mixerzoo_mixers' in a module"),
        ("module : TABLE", "its entry point 'module : TABLE' names 'TABLE' in a module"),
        ("no module!", "its entry point 'no module!' is not the name of a module; write it as in p = \"my_packa"),
        ("my-module", "its entry point 'my-module' is not the name of a module"),
        (".module", "its entry point '.module' is not the name of a module"),
        (":Own", "its entry point ':Own' is not the name of a module"),
    ],
)  # fmt: skip
def test_an_entry_point_names_a_module(site: SitePackages, value: str, reason: str) -> None:
    site.install("broken", dedent(good("own")) + "\nTABLE = {}\n", point="p", module="module", value=value)
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert list(registry.entries) == ["later"]
    (broken,) = registry.broken
    assert broken.plugin == "broken:p"
    assert broken.reason.startswith(reason)


def test_two_entry_points_to_one_module(site: SitePackages) -> None:
    site.install("twice", good("own"))
    (site.folder / "twice-1.0.dist-info" / "entry_points.txt").write_text("[mixerzoo]\nx = twice\ny = twice\n")
    registry = site.registry()
    assert registry.get("own").plugin == "twice:x"
    assert [(broken.plugin, broken.reason) for broken in registry.broken] == [
        ("twice:y", "its module 'twice' is that of twice:x already; remove one of the two entry points")
    ]


def test_two_modules_of_one_distribution_that_name_their_mixers_alike(site: SitePackages) -> None:
    site.install("first", good("own"))
    (site.folder / "second.py").write_text(dedent(good("own")))
    (site.folder / "first-1.0.dist-info" / "entry_points.txt").write_text("[mixerzoo]\na = first\nb = second\n")
    with pytest.raises(PluginError) as failure:
        site.registry().get("own")
    assert str(failure.value) == "several plugins offer a mixer named 'own': first:a and first:b; rename one of them"


def test_a_plugin_that_fails_while_it_registers_leaves_nothing_behind(site: SitePackages) -> None:
    source = """
        from mixerzoo import hookimpl
        @hookimpl
        def mixerzoo_mixer():
            return []
        @hookimpl
        def mixerzoo_mixers(registry):
            return []
    """
    site.install("a-broken-one", source)
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert list(registry.entries) == ["later"]
    assert [broken.plugin for broken in registry.broken] == ["a-broken-one:a-broken-one"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class Stop(BaseException): pass\nraise Stop('now')", "broken.Stop: now"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("import pytest\npytest.skip('not here', allow_module_level=True)", "Skipped: not here"),
        ("class Mute(Exception):\n    def __str__(self): 1 / 0\nraise Mute", "broken.Mute: <exception str() failed>"),
        ("raise ValueError('one\\n  two')", "ValueError: one two"),
        ("error = ValueError('one')\nerror.add_note('two')\nraise error", "ValueError: one"),
        ("def broken(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ],
    ids=["BaseException", "GeneratorExit", "skip", "mute", "two lines", "note", "syntax"],
)
def test_every_failure_is_told_in_one_line(site: SitePackages, source: str, reason: str) -> None:
    site.install("broken", source)
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert list(registry.entries) == ["later"]
    assert [broken.reason for broken in registry.broken] == [reason]


def test_an_interrupt_stops_everything(site: SitePackages) -> None:
    site.install("slow", "import signal\nsignal.raise_signal(signal.SIGINT)")
    with pytest.raises(KeyboardInterrupt):
        site.registry()


def test_what_is_left_of_a_half_removed_package(site: SitePackages) -> None:
    site.install("half", "import gone_with_the_rest")
    (site.folder / "half-1.0.dist-info" / "METADATA").unlink()
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert list(registry.entries) == ["later"]
    assert [broken.plugin for broken in registry.broken] == ["unknown:half"]


def assert_matches(pattern: str, text: str) -> None:
    """The pattern's parts, divided by ``.*``, occur in the text in this order."""
    position = 0
    for part in pattern.split(".*"):
        assert part in text[position:], f"{part!r} not in {text!r}"
        position = text.index(part, position) + len(part)


def test_an_entry_point_without_its_module(site: SitePackages) -> None:
    site.install("gone", good("own"), module="gone_module")
    (site.folder / "gone_module.py").unlink()
    registry = site.registry()
    assert registry.entries == {}
    assert [broken.reason for broken in registry.broken] == ["ModuleNotFoundError: No module named 'gone_module'"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("depth_atention", "depth_attention"), ("Residual", "residual"), ("densformer", "denseformer")],
)
def test_an_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    registry = Registry(
        point for point in entry_points(group="mixerzoo") if point.value.startswith("mixerzoo_plugins.")
    )
    with pytest.raises(MixerError) as failure:
        registry.get(name)
    message = str(failure.value)
    assert message.startswith(f"no mixer is named {name!r} (did you mean {nearest!r}?); known: ")
    for known in registry.entries:
        assert known in message
    assert "could not be loaded" not in message


def test_nothing_near_suggests_nothing() -> None:
    with pytest.raises(MixerError, match="no mixer is named 'zzzzzz'; known: "):
        load_registry().get("zzzzzz")


def test_no_mixer_at_all() -> None:
    with pytest.raises(MixerError, match="no mixer is named 'residual'"):
        Registry([]).get("residual")


@pytest.mark.parametrize("columns", [20, 60, 80, 120])
def test_a_list_of_nothing(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: Registry([]))
    result = CliRunner().invoke(app, ["list"], env={"COLUMNS": str(columns)})
    assert (result.exit_code, result.stderr) == (0, "")
    assert columns < 60 or result.stdout.startswith("Mixer  ")


def test_a_mixer_of_another_api_version_is_refused_in_words(site: SitePackages) -> None:
    site.install("older", dedent(good("old")) + "\n\nOwn.api_version = 0\n")
    site.install("newer", dedent(good("new")) + "\n\nOwn.api_version = 99\n")
    registry = site.registry()
    reasons = {broken.plugin: broken.reason for broken in registry.broken}
    assert "was written for version 0 of the mixer API" in reasons["older:older"]
    assert reasons["older:older"].endswith("upgrade the plugin")
    assert reasons["newer:newer"].endswith("upgrade mixerzoo")
    assert registry.entries == {}


@pytest.mark.parametrize(
    ("body", "sign"),
    [
        ("api_version = 1", "its api_version is 1"),
        ("needs_own_kv = True", "it has needs_own_kv"),
        ("api_version = 2\nseparate_inputs = True", "it has separate_inputs"),
        ("def defines(self, hook):\n    return False", "it has defines"),
        ("def mix_raw_kv(self, state, site, k, v): ...", "it has mix_raw_kv(self, state, site, k, v)"),
        ("def mix_kv(self, state, site, q, k, v): ...", "it has mix_kv(self, state, site, q, k, v)"),
        ("def depth_kv(self, state, site, q, rotate): ...", "it has depth_kv(self, state, site, q, rotate)"),
        ("@torch.no_grad()\ndef mix_kv(self, state, site, q, k, v): ...", "it has mix_kv(self, state, site, q, k, v)"),
    ],
)
def test_a_mixer_of_version_1_is_told_what_to_change(site: SitePackages, body: str, sign: str) -> None:
    site.install("older", "import torch\n" + own(body))
    (broken,) = site.registry().broken
    said = f"mixer 'own' was written for version 1 of the mixer API ({sign}); this mixerzoo has version 2. Change: "
    assert broken.reason.startswith(said)


def test_a_mixin_of_version_1_is_seen(site: SitePackages) -> None:
    mixin = "class Mixin:\n    def mix_kv(self, state, site, q, k, v): ...\n"
    site.install("older", own("pass").replace("class Own(", mixin + "\n\nclass Own(Mixin, ", 1))
    (broken,) = site.registry().broken
    assert "(it has mix_kv(self, state, site, q, k, v))" in broken.reason


@pytest.mark.parametrize(
    "body",
    [
        "def mix_kv(self, state, call): ...",
        "def mix_kv(self, state, call, scale=1.0, *more, **others): ...",
        "def depth_kv(self, *arguments): ...",
    ],
)
def test_a_hook_of_version_2_is_not_taken_for_one_of_version_1(site: SitePackages, body: str) -> None:
    site.install("newer", own(body))
    registry = site.registry()
    assert (list(registry.entries), registry.broken) == (["own"], [])


def test_the_page_on_version_2_has_the_message_of_the_registry() -> None:
    page = " ".join((ROOT / "docs" / "interface-2.md").read_text(encoding="utf-8").split())
    assert " ".join(CHANGES.split()) in page


FAILING = [
    ("def __init__(self, config, shape):\n    raise ValueError('no such thing')", "ValueError: no such thing"),
    ("def __init__(self, config, shape):\n    raise SystemExit(3)", "it would end the process, while being compared: "),
    ("def __init__(self, config):\n    super().__init__(config, None)", "TypeError: Own.__init__() takes 2 positional"),
    ("def plan(self):\n    raise ValueError('no plan')", "ValueError: no plan"),
    ("def plan(self):\n    return [0, 1]", "plan() returned [0, 1], which is not a mixerzoo.Plan"),
    ("def in_flight_bytes(self, dtype):\n    return '12'", "in_flight_bytes() returned '12', which is not a wh"),
    ("def in_flight_bytes(self, dtype):\n    return None", "in_flight_bytes() returned None, which is not a"),
    ("class Config(MixerConfig):\n    def model_post_init(self, context):\n        1 / 0", "ZeroDivisionError: divi"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), FAILING)
def test_list_names_a_mixer_that_fails_and_shows_the_others(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    site.install("culprit", own(body), release="2.5", point="p")
    site.install("the-good-one", good("later"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    for columns in ("80", "120"):
        lenient = CliRunner().invoke(app, ["list"], env={"COLUMNS": columns})
        assert (lenient.exit_code, lenient.stderr) == (0, "")
        assert {"own", "later"} <= {line.split()[0] for line in lenient.stdout.splitlines() if line.strip()}
        assert "Fail on this decoder (1)" in lenient.stdout
        assert f"  culprit:p: mixer 'own': {reason}" in lenient.stdout
    found = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    mixers = {mixer["name"]: mixer for mixer in found["mixers"]}
    assert mixers["own"]["compared"] is None
    assert mixers["own"]["not_compared"].startswith(reason)
    assert mixers["later"]["compared"] == {"parameters": 0, "cache_relative": 1.0, "in_flight_relative": 1.0}
    assert mixers["later"]["not_compared"] == ""
    (failing,) = found["failing_mixers"]
    assert (failing["name"], failing["plugin"]) == ("own", "culprit:p")
    assert failing["reason"].startswith(reason)
    assert "Traceback" in failing["details"]
    for arguments in (["list", "--strict"], ["list", "--strict", "--json"]):
        strict = CliRunner().invoke(app, arguments)
        assert strict.exit_code == 2
        assert f"mixer 'own' of culprit 2.5 fails: {reason}" in strict.stderr
        assert "Traceback" not in strict.stderr


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_long_origin_pushes_no_figure_out_of_the_table(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    site.install("a-distribution-whose-name-does-not-end", good("own"), release="1.0.dev20260101")
    site.install("short", good("other"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    shown = CliRunner().invoke(app, ["list"], env={"COLUMNS": str(columns)}).stdout.splitlines()
    assert max(map(len, shown)) <= columns
    assert "In flight" in shown[0]
    assert [line.count("1×") for line in shown if line.startswith(("own ", "other "))] == [2, 2]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def __init__(self, config, shape):\n    raise MixerError('only for 7 layers')", "only for 7 layers"),
        ("def plan(self):\n    raise MixerError('only for\\nloops')", "only for loops"),
        ("def plan(self):\n    raise MixerError", "MixerError"),
        ("class Config(MixerConfig):\n    depth: int", "the key 'depth' is required"),
    ],
)  # fmt: skip
def test_list_says_why_a_mixer_is_not_compared(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    site.install("picky", own(body))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    for arguments in (["list"], ["list", "--strict"]):
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
        assert (result.exit_code, result.stderr) == (0, "")
        assert f"not compared: {reason}" in result.stdout
        assert "Fail on" not in result.stdout
    found = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    (mixer,) = found["mixers"]
    assert mixer["compared"] is None
    assert mixer["not_compared"].startswith(reason)
    assert found["failing_mixers"] == []


def test_an_interrupt_stops_list(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("slow", own("def plan(self):\n    import signal\n    signal.raise_signal(signal.SIGINT)"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    assert CliRunner().invoke(app, ["list"]).exit_code == 130


@pytest.mark.filterwarnings("ignore:Default value")
def test_show_names_the_plugin_whose_options_cannot_be_told(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("odd", own("class Config(MixerConfig):\n    hook: Any = object()"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    for arguments in (["show", "own"], ["show", "own", "--json"]):
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "odd:odd: the options of mixer 'own' cannot be shown: " in result.stderr


def test_show_names_the_plugin_whose_plan_cannot_be_told(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("odd", own("def plan(self):\n    raise LookupError('no plan')"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    for arguments in (["show", "own"], ["show", "own", "--json"]):
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "odd:odd: the plan of mixer 'own' cannot be shown: " in result.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def plan(self):\n    return replace(super().plan(), needs_own_kv=True)", True),
        ("pass", False),
        ("class Config(MixerConfig):\n    depth: int", None),
        ("def plan(self):\n    raise MixerError('four layers are too few')", None),
    ],
    ids=["needs", "does not", "no defaults", "refuses"],
)
def test_show_says_whether_a_mixer_needs_keys_and_values_of_its_own(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, body: str, said: bool | None
) -> None:
    head = "from dataclasses import replace\nfrom mixerzoo import MixerError\n"
    site.install("odd", head + own(body))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    result = CliRunner().invoke(app, ["show", "own", "--json"])
    assert json.loads(result.stdout)["needs_own_kv"] is said
    assert ("yes: no layer may borrow them" in CliRunner().invoke(app, ["show", "own"]).stdout) is bool(said)


def test_list_strict_fails_on_a_broken_plugin(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("broken", "import nowhere_to_be_found")
    site.install("fine", good("fine"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    lenient = CliRunner().invoke(app, ["list"])
    assert lenient.exit_code == 0
    assert "broken:broken" in lenient.output
    strict = CliRunner().invoke(app, ["list", "--strict"])
    assert strict.exit_code == 2
    assert "plugins that cannot be loaded: broken:broken" in strict.output


# What a plugin does to the process.


def test_what_a_plugin_prints_goes_to_standard_error(site: SitePackages, capfd: pytest.CaptureFixture[str]) -> None:
    site.install(
        "loud",
        """
        import os, sys
        print("by print")
        sys.stdout.write("by write \\x1b[31m\\n")
        os.write(1, b"by descriptor\\n")
        os.system("echo by child")
        kept = sys.stdout
        """
        + dedent(good("own")).replace("return [Own]", "print('by hook'); return [Own]").replace("\n", "\n        "),
    )
    assert list(site.registry().entries) == ["own"]
    print("kept earlier", file=sys.modules["loud"].kept)
    print("ours")
    out, err = capfd.readouterr()
    assert out == "ours\n"
    for said in ("by print", r"by write \x1b[31m", "by descriptor", "by child", "by hook", "kept earlier"):
        assert said in err


@pytest.mark.parametrize(
    ("statement", "words", "read"),
    [
        ("import torch; torch.set_default_dtype(torch.float64)", "default dtype (from torch.float32 to torch.float64)",
         torch.get_default_dtype),
        ("import torch; torch.set_default_device('meta')", "default device (from cpu to meta)",
         torch.get_default_device),
        ("import torch; torch.set_grad_enabled(False)", "gradient mode", torch.is_grad_enabled),
        ("import torch; torch.set_num_threads(torch.get_num_threads() + 1)", "threads", torch.get_num_threads),
        ("from torch import *; use_deterministic_algorithms(not are_deterministic_algorithms_enabled())", "algorithms",
         torch.are_deterministic_algorithms_enabled),
        ("import torch; torch.backends.cudnn.benchmark ^= True", "cuDNN", lambda: torch.backends.cudnn.benchmark),
        ("import torch; torch.set_float32_matmul_precision('medium')", "float32 products",
         torch.get_float32_matmul_precision),
        ("import torch; torch.backends.cuda.matmul.fp32_precision = 'tf32'",
         "float32 products (float32_matmul_precision from highest to None, backends.cuda.matmul.fp32_precision from",
         float32_precision),
        ("import torch; torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "float32 products", float32_precision),
        ("import torch; torch.backends.fp32_precision = 'tf32'", "float32 products", float32_precision),
        ("import torch; torch.backends.cudnn.allow_tf32 = False", "float32 products", float32_precision),
        ("import torch; torch.manual_seed(12345)", "the random state of torch", lambda: torch.get_rng_state().tolist()),
        ("import torch; torch.rand(1)", "the random state of torch", lambda: torch.get_rng_state().tolist()),
        ("import random; random.seed(1)", "the random state of Python", random.getstate),
        ("import numpy; numpy.random.rand()", "the random state of numpy",
         lambda: repr(numpy.random.get_state())),
        ("import os; os.chdir('/')", "the working directory (from ", os.getcwd),
        ("import os; os.environ['OF_A_PLUGIN'] = '1'", "the environment (OF_A_PLUGIN)", lambda: dict(os.environ)),
        ("import os; del os.environ['PATH']", "the environment (PATH)", lambda: dict(os.environ)),
        ("import sys; sys.path.insert(0, '/somewhere')", "sys.path ('/somewhere')", lambda: list(sys.path)),
        ("import sys; sys.excepthook = print", "hooks of sys", lambda: sys.excepthook),
        ("import sys; sys.stderr = None", "the standard streams", lambda: sys.stderr),
        ("import sys; sys.setrecursionlimit(5000)", "the recursion limit", sys.getrecursionlimit),
        ("import locale; locale.setlocale(locale.LC_ALL, 'C')", "the locale", lambda: locale.setlocale(locale.LC_ALL)),
        ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signal handlers",
         lambda: signal.getsignal(signal.SIGTERM)),
        ("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)", "signal handlers",
         lambda: signal.getsignal(signal.SIGINT)),
        ("import signal; signal.alarm(100)", "an alarm", lambda: signal.getitimer(signal.ITIMER_REAL)),
        ("import logging; logging.disable(50)", "the root logger", lambda: logging.root.manager.disable),
        ("import os; os.umask(0o011)", "the mask of file permissions", lambda: (os.umask(0o077), os.umask(0o022))[1]),
        ("import warnings; warnings.simplefilter('ignore')", "the filters of warnings", lambda: warnings.filters[:]),
        ("import socket; socket.setdefaulttimeout(1)", "the time-out of sockets", socket.getdefaulttimeout),
        ("import gc; gc.disable()", "the garbage collector", gc.isenabled),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["", "; 1 / 0"])
def test_what_a_plugin_changes_is_told_and_undone(
    site: SitePackages,
    caplog: pytest.LogCaptureFixture,
    statement: str,
    words: str,
    read: Callable[[], Any],
    ending: str,
) -> None:
    site.install("changer", statement + ending + "\n" + dedent(good("own")))
    site.install("the-good-one", good("later"))
    before = read()
    registry = site.registry()
    assert read() == before
    assert list(registry.entries) == (["later"] if ending else ["own", "later"])
    (changes,) = registry.changes.values()
    assert list(registry.changes) == ["changer:changer"]
    assert any(words in change for change in changes)
    assert all(change.endswith("undone") for change in changes)
    assert "plugin changer:changer changed, while being loaded: " in caplog.text
    assert words in caplog.text


def test_the_built_in_plugins_change_nothing() -> None:
    assert {plugin for plugin in load_registry().changes if plugin.startswith("mixerzoo:")} == set()


def test_a_setting_that_fails_leaves_the_others_to_be_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("not now")

    level = [1]
    broken = (
        process_state.Setting("one that cannot be read", fails, fails),
        process_state.Setting("one that cannot be written", lambda: level[0], fails),
    )
    monkeypatch.setattr(process_state, "SETTINGS", (*broken, *process_state.SETTINGS))
    filters, recursion = warnings.filters[:], sys.getrecursionlimit()
    snapshot = process_state.Snapshot()
    level[0] = 2
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(recursion + 1)
    failed, undone, of_warnings = snapshot.restore()
    assert failed == "one that cannot be written, which cannot be undone: not now"
    assert undone.startswith("the recursion limit")
    assert of_warnings == "the filters of warnings, undone"
    assert (warnings.filters[:], sys.getrecursionlimit()) == (filters, recursion)


def test_a_thread_that_keeps_the_process_alive_is_named(site: SitePackages, caplog: pytest.LogCaptureFixture) -> None:
    source = "import threading\nstop = threading.Event()\nthreading.Thread(target=stop.wait, name='lasting').start()\n"
    site.install("threaded", source + dedent(good("own")))
    registry = site.registry()
    sys.modules["threaded"].stop.set()
    assert registry.changes == {"threaded:threaded": ["it started threads that keep the process from ending: lasting"]}


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("import os\nos._exit(7)", "it would end the process, while being loaded: SystemExit('os._exit(7)')"),
        ("import os\nos.abort()", "it would end the process, while being loaded: SystemExit('os.abort()')"),
        ("exit()", "it would end the process, while being loaded: SystemExit(None)"),
        (
            "raise KeyboardInterrupt",
            "it would end the process, while being loaded: it raises KeyboardInterrupt itself",
        ),
        ("raise ValueError('a\\x1b[2Jb\\x9bc\\u202ed')", r"ValueError: a\x1b[2Jb\x9bc\u202ed"),
    ],
)
def test_a_plugin_can_neither_end_the_process_nor_paint_on_the_terminal(
    site: SitePackages, statement: str, reason: str
) -> None:
    site.install("broken", statement)
    site.install("the-good-one", good("later"))
    registry = site.registry()
    assert list(registry.entries) == ["later"]
    assert [broken.reason for broken in registry.broken] == [reason]
    assert "\x1b" not in registry.broken[0].details


def test_children_of_a_plugin_end_as_they_like(site: SitePackages) -> None:
    site.install(
        "forking",
        "import os\npid = os.fork()\nif pid == 0: os._exit(5)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\nleave = os._exit\n" + dedent(good("own")),
    )
    assert list(site.registry().entries) == ["own"]
    assert sys.modules["forking"].code == 5
    pid = os.fork()
    if pid == 0:
        sys.modules["forking"].leave(6)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6


def test_a_plugin_that_takes_long_is_named_while_it_does(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mixerzoo.mixer.plugin_guard.PATIENCE", 0.2)
    site.install("slow", "import time\ntime.sleep(0.5)\n" + dedent(good("own")))
    assert list(site.registry().entries) == ["own"]
    said = capsys.readouterr().err
    assert said.startswith("plugin slow:slow: still being loaded after 0.2 s\n")
    assert len(said.splitlines()) == 2


def test_control_characters_of_a_card_and_of_options_are_shown(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
    card = dataclasses.replace(
        Residual.card, title="a\\x1b[31mb", notes="c\\x9bd\\ne", dialects={"f\\x07": "g\\u202eh"}, summary="i\\rj"
    )
    class Config(MixerConfig):
        depth: int = Field(1, description="k\\x1b]0;l\\x07")
    """
    site.install("painter", "from pydantic import Field\n" + own(body))
    registry = site.registry()
    card = registry.get("own").mixer.card
    assert (card.title, card.notes, card.summary) == (r"a\x1b[31mb", "c\\x9bd\ne", r"i\rj")
    assert card.dialects == {r"f\x07": r"g\u202eh"}
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    for arguments in (["list"], ["list", "--json"], ["show", "own"], ["show", "own", "--json"]):
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 0
        assert not CONTROL.search(shown.stdout)


def test_json_stays_json_whatever_a_mixer_prints(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("loud", own("def plan(self):\n    print('planning')\n    return super().plan()"))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    result = CliRunner().invoke(app, ["list", "--json"])
    assert [mixer["name"] for mixer in json.loads(result.stdout)["mixers"]] == ["own"]
    assert "planning" in result.stderr


def test_list_tells_what_a_plugin_changed(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("changer", "import sys\nsys.path.append('/x')\n" + dedent(good("own")))
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    changes = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)["changes"]
    assert changes == [{"plugin": "changer:changer", "changed": ["sys.path ('/x'), undone"]}]
    strict = CliRunner().invoke(app, ["list", "--strict"])
    assert strict.exit_code == 2
    assert "plugin changer:changer changed sys.path ('/x'), undone" in strict.stderr


def test_damaged_entry_points_of_one_distribution_hurt_no_other(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("damaged", good("own"))
    (site.folder / "damaged-1.0.dist-info" / "entry_points.txt").write_text("[mixerzoo]\nno equals sign\n")
    site.install("elsewhere", good("other"))
    (site.folder / "elsewhere-1.0.dist-info" / "entry_points.txt").write_text("[scripts]\nno equals sign\n")
    site.install("the-good-one", good("later"))
    registry = load_registry.__wrapped__()
    assert {"later", "residual"} <= set(registry.entries)
    assert [broken.plugin for broken in registry.broken] == ["damaged:entry_points.txt"]


@pytest.mark.parametrize("module", ["typing", "yaml", "torch", "mixerzoo_plugins"])
def test_modules_in_the_working_directory_are_not_imported(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("raise SystemExit('the wrong one')")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "mixerzoo", "show", "residual", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "residual"


def test_a_guard_within_a_guard_leaves_the_process_to_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr("mixerzoo.mixer.plugin_guard.Snapshot", lambda: taken.append(1) or process_state.Snapshot())
    changes: list[str] = []
    with guarded("outer", "working", changes):
        for _ in range(3):
            with pytest.raises(PluginError, match="while checking"), guarded("inner", "checking"):
                sys.exit(1)
        torch.set_default_dtype(torch.float64)
        assert len(taken) == 1
    assert torch.get_default_dtype() == torch.float32
    assert [change.split(" (")[0] for change in changes] == ["torch's default dtype"]
    with guarded("next", "working"):
        assert len(taken) == 2


def test_what_is_asked_of_a_plugin_later_is_guarded_too(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """
    class Config(MixerConfig):
        def model_post_init(self, context):
            print("checking")
            torch.set_default_dtype(torch.float64)

    @classmethod
    def read_reference(cls, config, tensors):
        print("reading")
        torch.manual_seed(1)
        return None
    """
    site.install("loud", "import torch\n" + own(body))
    registry = Registry(entry_points(group="mixerzoo"))
    for module in ("mixer.choice", "checkpoints.foreign_config"):
        monkeypatch.setattr(f"mixerzoo.{module}.load_registry", lambda: registry)
    state = torch.get_rng_state()
    assert not isinstance(mixer_choice.check_choice({"name": "own"}), list)
    assert foreign._recognise({}, {}, Path("config.json"))[0].name == "residual"
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    out, err = capsys.readouterr()
    assert out == ""
    assert "checking\n" in err
    assert "reading\n" in err
