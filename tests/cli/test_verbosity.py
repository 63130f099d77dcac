"""`--quiet` and `--verbose`, before the command and after it; results are the same with both."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import mixerzoo
from command_line import run
from mixerzoo.cli import COMMANDS
from mixerzoo.cli.verbosity import stderr_console
from mixerzoo.data import TextTokenizer
from mixerzoo.recipe import find_recipe, load_recipe
from runs import OVERRIDES, QUICKSTART


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("run")
    tiny = load_recipe(QUICKSTART, [o for o in OVERRIDES if o.startswith(("model.", "data."))])
    mixerzoo.save_checkpoint(mixerzoo.build(tiny), directory)
    TextTokenizer.for_bytes().save(directory)
    return directory


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_both(name: str) -> None:
    shown = run(name, "--help").stdout
    assert "-q, --quiet" in shown
    assert "-v, --verbose" in shown


def test_training_says_its_result_alone_if_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    arguments = ("train", QUICKSTART, *OVERRIDES, "train.steps=2", "--out")
    quiet = run("-q", *arguments, tmp_path / "quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert quiet.stdout.startswith("validation")
    assert "Saved in" not in quiet.stdout
    # The next one is told nothing of it.
    usual = run(*arguments, tmp_path / "usual")
    assert "Train tokenizer" in usual.stderr or "step" in usual.stderr
    assert "recipe: " not in usual.stderr
    assert f"Saved in {tmp_path / 'usual'}" in usual.stdout


def test_notes_are_not_for_the_quiet(checkpoint: Path) -> None:
    arguments = ("generate", checkpoint, "--prompt", "x" * 40, "--max-new-tokens", "3", "--temperature", "0")
    usual, quiet = run(*arguments), run(*arguments, "--quiet")
    assert usual.stderr.startswith("Note: ") or usual.stderr == ""
    assert quiet.stderr == ""
    assert quiet.stdout == usual.stdout


def test_a_hint_is_not_for_the_quiet(tmp_path: Path) -> None:
    assert "Next: cd" in run("new", "loud_sum", "--dir", tmp_path / "loud").stdout
    listed = run("new", "still_sum", "-q", "--dir", tmp_path / "still").stdout
    assert "pyproject.toml" in listed
    assert "Next" not in listed


def test_verbose_says_what_was_chosen_and_changes_no_result() -> None:
    usual, told = run("describe", "quickstart", "mixer.stride=2"), run("describe", "quickstart", "mixer.stride=2", "-v")
    assert (usual.stderr, usual.stdout) == ("", told.stdout)
    assert f"mixerzoo {mixerzoo.__version__}, Python 3." in told.stderr
    assert f"recipe: {find_recipe('quickstart')}\n  with mixer.stride=2\n" in told.stderr
    assert run("-v", "describe", "quickstart", "mixer.stride=2").stderr == told.stderr


def test_verbose_says_which_device_trains(tmp_path: Path) -> None:
    nothing = "data.source={name: text, paths: [none/*.md]}"
    assert "\ndevice: c" in run("train", "quickstart", nothing, "--out", tmp_path / "run", "-v").stderr


def test_verbose_shows_where_an_error_comes_from() -> None:
    usual, told = run("describe", "nowhere.yaml"), run("describe", "nowhere.yaml", "--verbose")
    assert "Traceback" not in usual.stderr
    assert "Traceback (most recent call last)" in told.stderr
    assert told.stderr.endswith(usual.stderr)
    assert (usual.exit_code, told.exit_code) == (2, 2)


def test_bars_do_not_move_in_a_pipe_whatever_colour_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not stderr_console().is_terminal


@pytest.mark.parametrize("arguments", [["-q", "list", "-v"], ["-q", "-v", "list"], ["list", "-v", "-q"]])
def test_both_at_once_contradict_each_other(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "contradict each other" in result.stderr


def test_warnings_are_not_for_the_quiet() -> None:
    assert run("list", "-q").exit_code == 0
    assert logging.getLogger("mixerzoo").level == logging.ERROR
    assert run("recipes").exit_code == 0
    assert logging.getLogger("mixerzoo").level == logging.NOTSET
