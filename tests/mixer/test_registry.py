"""Plugins are found, attributed to their distributions, and told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import distributions, entry_points, version
from pathlib import Path
from textwrap import dedent

import pytest
from typer.testing import CliRunner

from mixerzoo import Mixer, load_registry
from mixerzoo.cli import app
from mixerzoo.errors import MixerError, PluginError
from mixerzoo.mixer import plugin_record, recorded_entry
from mixerzoo.mixer.registry import Registry
from plugin_sites import SitePackages, assert_matches, good

Installer = Callable[..., Registry]


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
        recorded_entry(registry, "residual", {"distribution": "thief", "version": "1.0"})
    assert (
        recorded_entry(registry, "residual", {"distribution": "mixerzoo", "version": "0"}).plugin == "mixerzoo:residual"
    )
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
        recorded_entry(load_registry(), "unheard_of", recorded)
    assert "comes from the plugin somebody-s-mixers 3.1, which is not installed here" in str(missing.value)
    assert "pip install somebody-s-mixers" in str(missing.value)
    site.install("somebody-s-mixers", good("renamed"), release="4.0")
    with pytest.raises(MixerError) as renamed:
        recorded_entry(site.registry(), "unheard_of", recorded)
    assert "somebody-s-mixers 3.1, and version 4.0 is installed here, but: no mixer is named" in str(renamed.value)
    assert "pip install" not in str(renamed.value)
    damaged_records = ({"distribution": name} for name in (3, "unknown", "", " ", "../x", "a\x1bb", "a" * 1000, [], {}))
    for damaged in (None, "somebody", *damaged_records):
        with pytest.raises(MixerError, match="which plugin it came from is not recorded"):
            recorded_entry(load_registry(), "unheard_of", damaged)


def test_another_plugin_s_mixer_of_that_name_is_not_the_recorded_one(
    site: SitePackages, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("moved-here", good("own"))
    registry, recorded = site.registry(), {"distribution": "somebody-s-mixers", "version": "3.1"}
    with pytest.raises(MixerError) as missing:
        recorded_entry(registry, "own", recorded)
    assert_matches(
        "comes from the plugin somebody-s-mixers 3.1, which is not installed here (pip install somebody-s-mixers)"
        ".*is offered by moved-here:moved-here.*change mixer_plugin.distribution to moved-here",
        str(missing.value),
    )
    assert recorded_entry(registry, "own", {"distribution": "Moved_Here", "version": "0.1"}).plugin.startswith("moved-")
    assert recorded_entry(registry, "own", None).plugin == "moved-here:moved-here"
    assert caplog.text == ""
    # Installed, and it has left the mixer to the other; or cannot say whether it has.
    site.install("somebody-s-mixers", good("renamed"), release="4.0")
    assert recorded_entry(site.registry(), "own", recorded).plugin == "moved-here:moved-here"
    assert "somebody-s-mixers 3.1, which does not offer it any more; the one of moved-here is taken" in caplog.text
    site.install("damaged", "import nothing_of_that_name")
    with pytest.raises(
        MixerError, match=r"plugin damaged, which could not be loaded \(damaged:damaged: ModuleNotFound"
    ):
        recorded_entry(site.registry(), "own", {"distribution": "damaged"})


def test_the_plugins_of_parts_are_recorded_too(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("somebody-s-mixers", good("own"))
    monkeypatch.setattr("mixerzoo.mixer.choice.load_registry", lambda: registry)
    registry = Registry(entry_points(group="mixerzoo"))
    options = registry.get("compose").mixer.Config.model_validate({"of": [{"name": "own"}, {"name": "moda"}]})
    record = plugin_record(registry, "compose", options)
    assert record["parts"] == {"own": {"distribution": "somebody-s-mixers", "version": "1.0"}}
    assert recorded_entry(registry, "compose", record).mixer.name == "compose"
    # Another one's mixer of that name is there in its place.
    record["parts"]["own"]["distribution"] = "nobody-s-mixers"
    with pytest.raises(
        MixerError, match=r"'own' comes from the plugin nobody-s-mixers 1\.0, which is not installed here"
    ):
        recorded_entry(registry, "compose", record)
    assert recorded_entry(registry, "compose", {**record, "parts": ["own"]}).mixer.name == "compose"


def test_a_project_installed_under_another_name_has_its_own_mixers(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("another-name", good("own"))
    monkeypatch.setattr("mixerzoo.mixer.recorded.PROJECT", "mixerzoo-of-old")
    assert recorded_entry(site.registry(), "own", {"distribution": "mixerzoo-of-old"}).distribution == "another-name"


def test_one_distribution_seen_twice_is_one(site: SitePackages, tmp_path: Path) -> None:
    """An editable install and its build folder both lie on sys.path."""
    site.install("good-plugin", good("own"))
    found = [*distributions(path=[str(site.folder)]), *distributions(path=[str(site.folder)])]
    registry = Registry(point for d in found for point in d.entry_points)
    assert list(registry.entries) == ["own"]


@pytest.mark.parametrize("returned", ["(Own,)", "[Own, Own]", "{Own}", "iter([Own])"])
def test_what_a_hook_may_return(site: SitePackages, returned: str) -> None:
    site.install("good", dedent(good("own")).replace("return [Own]", f"return {returned}"))
    registry = site.registry()
    assert (list(registry.entries), registry.broken, registry.clashes) == (["own"], [], {})


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
