"""`mixerzoo list` and `show` with mixers that fail or cannot be compared."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mixerzoo.cli import app
from plugin_sites import SitePackages, good, own

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


def test_the_page_of_a_mixer_that_takes_no_such_decoder(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("shy", own("def plan(self):\n    raise MixerError('only for <loops>')"), release="2.5", point="p")
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    page = CliRunner().invoke(app, ["show", "own", "--html"])
    assert page.exit_code == 0
    assert "From shy 2.5 (shy:p)" in page.stdout
    assert "Neither drawn nor measured with default options: only for &lt;loops&gt;" in page.stdout
    assert "<svg" not in page.stdout


@pytest.mark.parametrize("body", ["def plan(self):\n    1 / 0", "def sources(self, site):\n    raise SystemExit(3)"])
def test_a_page_that_cannot_be_made_names_its_mixer(
    site: SitePackages, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    site.install("culprit", own(body), point="p")
    registry = site.registry()
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    page = CliRunner().invoke(app, ["show", "own", "--html"])
    assert (page.exit_code, page.stdout) == (2, "")
    assert "culprit:p" in page.stderr
