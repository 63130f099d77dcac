"""What a plugin does to the process is told and undone."""

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
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner

from mixerzoo import load_registry
from mixerzoo.checkpoints import foreign_config as foreign
from mixerzoo.cli import app
from mixerzoo.errors import CONTROL, CheckpointError, PluginError
from mixerzoo.mixer import choice as mixer_choice
from mixerzoo.mixer.plugin_guard import guarded
from mixerzoo.mixer.registry import Registry
from mixerzoo.process import state as process_state
from mixerzoo.process.state import float32_precision
from plugin_sites import SitePackages, good, own


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


def test_what_a_plugin_raises_is_blamed_on_it(site: SitePackages, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
    @classmethod
    def read_reference(cls, config, tensors):
        raise {}
    """
    for raised, told in (("ValueError('torn')", "ValueError: torn"), ("SystemExit(3)", "it would end the process")):
        name = raised[:5].lower()
        site.install(name, own(body.format(raised)))
        registry = Registry(entry_points(group="mixerzoo", name=name))
        monkeypatch.setattr("mixerzoo.checkpoints.foreign_config.load_registry", lambda found=registry: found)
        with pytest.raises(CheckpointError) as caught:
            foreign._recognise({}, {}, Path("config.json"))
        assert str(caught.value).startswith(f"config.json: mixer 'own' cannot read this configuration: {told}")
