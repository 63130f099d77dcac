"""A plugin that is broken takes nobody down, and is named in one line."""

from __future__ import annotations

from textwrap import dedent

import pytest

from mixerzoo.errors import MixerError
from plugin_sites import SitePackages, assert_matches, good, own


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


def test_an_entry_point_without_its_module(site: SitePackages) -> None:
    site.install("gone", good("own"), module="gone_module")
    (site.folder / "gone_module.py").unlink()
    registry = site.registry()
    assert registry.entries == {}
    assert [broken.reason for broken in registry.broken] == ["ModuleNotFoundError: No module named 'gone_module'"]


def test_a_slip_is_not_drowned_by_plugins_that_are_broken(site: SitePackages) -> None:
    site.install("broken-plugin", own("api_version = 1"))
    site.install("a-good-one", good("before"))
    registry = site.registry()
    with pytest.raises(MixerError) as slip:
        registry.get("befor")
    assert "did you mean 'before'?" in str(slip.value)
    assert "broken-plugin" not in str(slip.value)
    with pytest.raises(MixerError) as meant:
        registry.get("own")
    assert str(meant.value).startswith("no mixer is named 'own'. Plugins that could not be loaded: broken-plugin")
    with pytest.raises(MixerError, match=r"known: before\. Plugins that could not be loaded: broken-plugin"):
        registry.get("xyzzy")
