"""What shells complete, and at what cost."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mixerzoo.cli.completion import complete_mixer, complete_mixers, complete_recipe, names_of
from mixerzoo.mixer import load_registry
from mixerzoo.recipe import recipes_at_hand
from own import OWN


def completed(line: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    program = "import sys; from mixerzoo.cli import main; sys.argv = ['mixerzoo']; main()"
    variables = {"_MIXERZOO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        capture_output=True, text=True, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    for heavy in ("torch", "transformers", "mixerzoo_plugins.residual"):
        assert f" {heavy}\n" not in done.stderr, heavy
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mixerzoo rec", ["recipes"]),
        ("mixerzoo show krom", ["krom_hc"]),
        ("mixerzoo train quick", ["quickstart"]),
        ("mixerzoo compare quickstart --mixers residual,depth_", ["residual,depth_attention"]),
        ("mixerzoo describe quickstart --s", ["--svg"]),
    ],
)
def test_a_shell_is_offered(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_every_mixer_is_offered_by_the_name_that_recipes_know() -> None:
    assert set(complete_mixer("")) >= set(OWN)
    # Others of this environment too, unless they hide their names.
    assert {name for name in complete_mixer("") if load_registry().entries.get(name)} >= set(OWN)
    assert complete_mixers("cla,") == [f"cla,{name}" for name in complete_mixer("")]
    assert complete_recipe("") == list(recipes_at_hand())


@pytest.mark.parametrize(
    "source", ["raise ValueError\n", "x = (\n", "class Other:\n    name = 'a'\n"], ids=["raises", "wrong", "other"]
)
def test_a_plugin_that_shows_no_name_has_that_of_its_entry_point(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hidden_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert names_of(EntryPoint("hidden", "hidden_plugin", "mixerzoo")) == ["hidden"]
    assert names_of(EntryPoint("gone", "no_such_package.plugin", "mixerzoo")) == ["gone"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Or typer asks which shell this is.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = subprocess.run(
        [sys.executable, "-m", "mixerzoo", "--show-completion", shell], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"complete_{shell}" in done.stdout
