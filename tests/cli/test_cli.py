"""The command line: how long it takes to start, and how it fails."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import mixerzoo
from command_line import error_of, output_of, run, subprocess_run
from mixerzoo.cli import COMMANDS, schema
from mixerzoo.cli.common import print_error
from mixerzoo.errors import CheckpointError

# Starting.


def test_help_imports_neither_torch_nor_pydantic() -> None:
    found = subprocess_run(["-X", "importtime", "-m", "mixerzoo", "--help"])
    assert found.returncode == 0
    assert b"torch" not in found.stderr
    assert b"pydantic" not in found.stderr


def test_list_imports_nothing_heavier_than_torch() -> None:
    found = subprocess_run(["-X", "importtime", "-m", "mixerzoo", "list"])
    assert found.returncode == 0
    for heavy in (b"transformers", b"tokenizers", b"datasets", b"torch._dynamo", b"sympy"):
        assert heavy not in found.stderr, heavy


def test_no_command_here_imports_transformers(recipe: Path, checkpoint: Path) -> None:
    program = f"""
import sys
from typer.testing import CliRunner
from mixerzoo.cli import app
for arguments in (
    ["list"], ["show", "attn_res"], ["schema"], ["describe", {str(recipe)!r}],
    ["generate", {str(checkpoint)!r}, "--max-new-tokens", "1"],
):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output)
assert "transformers" not in sys.modules
"""
    found = subprocess_run(["-c", program])
    assert found.returncode == 0, found.stderr.decode()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_listed_and_explains_itself(name: str) -> None:
    module, summary = COMMANDS[name]
    assert f"  {name} " in output_of("--help")
    # In full, on a line of 80 characters.
    assert summary in output_of("--help")
    assert importlib.import_module(module).command.__doc__.partition("\n")[0] in output_of(name, "--help", columns=120)


def test_version() -> None:
    assert output_of("--version") == f"mixerzoo {mixerzoo.__version__}\n"


def test_script_and_module_are_the_same_program() -> None:
    (script,) = entry_points(group="console_scripts", name="mixerzoo")
    assert script.load() is mixerzoo.cli.main
    assert subprocess_run(["-m", "mixerzoo", "--version"]).stdout.startswith(b"mixerzoo ")


# Failing.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "depth_atention"], "no mixer is named 'depth_atention' (did you mean 'depth_attention'?)"),
        (["describe", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (
            ["train", "quickstrt"],
            "quickstrt: no such file, and no recipe of that name at hand (did you mean 'quickstart'?)",
        ),
        (
            ["describe", "folder/quickstart.yaml"],
            "no such file; 'quickstart' alone names the recipe that comes with mix",
        ),
        (["train", "zzzzz"], "zzzzz: no such file, and no recipe of that name at hand; `mixerzoo recipes` lists them"),
        (["describe", "RECIPE", "mixer.stide=2"], "mixer.stide: unknown key (did you mean 'stride'?)"),
        (["describe", "RECIPE", "model.num_layers=two"], "model.num_layers: expected a whole number, got 'two'"),
        (["describe", "RECIPE", "model.num_layers"], "expected key.path=value, e.g. train.steps=100"),
        (["describe", "RECIPE", "--json", "model.num_heads=5"], "not divisible by num_heads 5"),
        (["generate", "nowhere"], "nowhere: no such directory"),
        (["generate", "EMPTY"], "no tokenizer at"),
        (["generate", "RUN", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "RUN", "--top-k", "0"], "top_k is 0"),
        (["generate", "RUN", "--top-p", "1.5"], "top_p is 1.5"),
        (["generate", "RUN", "--max-new-tokens", "-1"], "max_new_tokens is -1"),
        (["generate", "RUN", "--dtype", "float3"], "cannot be of dtype 'float3' (did you mean 'float32'?)"),
        (["generate", "RUN", "--dtype", "int32"], "weights cannot be of dtype 'int32'"),
        (["generate", "RUN", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["generate", "RUN", "--device", "meta"], "device 'meta' holds no numbers"),
        (["generate", "RUN", "--prompt-file", "nowhere"], "nowhere: the prompt cannot be read: No such file"),
        (["generate", "RUN", "--prompt", "a", "--prompt-file", "b"], "either --prompt or --prompt-file"),
        (["generate", "RUN", "--prompt", "a\udcff"], "the prompt is not valid UTF-8"),
        (["generate", "RUN", "--seed", "x"], "Invalid value for '--seed'"),
        (["lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["show"], "Missing argument 'NAME'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_user_errors_are_plain_messages(
    arguments: list[str], words: str, recipe: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RECIPE": str(recipe), "RUN": str(checkpoint), "EMPTY": str(tmp_path / "empty")}
    message = error_of(*(places.get(argument, argument) for argument in arguments))
    assert words in message
    assert "Error:" in message
    assert "─" not in message


def test_text_of_the_user_is_printed_as_it_is() -> None:
    assert "named '[red]x[/red] :smile:'" in error_of("show", "[red]x[/red] :smile:")
    path = "/".join(["a directory with a long name"] * 8) + "/recipe.yaml"
    assert f"{path}: no such file\n" in error_of("describe", path)


def test_every_problem_of_a_recipe_is_on_a_line_of_its_own(recipe: Path) -> None:
    message = error_of("describe", recipe, "mixer.stide=2", "model.hidden_sise=1")
    first, *lines = message.splitlines()
    assert first == "Error:"
    assert len(lines) == 2


def test_an_error_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(CheckpointError("\n".join(f"line {i}" for i in range(100))))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 24
    assert lines[-1] == "… and 80 more"


def test_a_bug_keeps_its_traceback() -> None:
    program = """
from mixerzoo.cli import main, schema
import sys
schema.command = lambda: 1 / 0
sys.argv = ["mixerzoo", "schema"]
main()
"""
    found = subprocess_run(["-c", program])
    assert found.returncode == 1
    assert found.stderr.startswith(b"Traceback (most recent call last)")
    assert found.stderr.rstrip().endswith(b"ZeroDivisionError: division by zero")


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        """Be interrupted."""
        raise KeyboardInterrupt

    monkeypatch.setattr(schema, "command", interrupted)
    result = run("schema")
    assert (result.exit_code, result.output) == (130, "")


def test_interrupt_while_generating(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "mixerzoo", "generate", str(checkpoint), "--prompt", "x"]
    with subprocess.Popen(
        [*command, "--max-new-tokens", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Whoever runs the tests in the background has interrupts ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  nothing else runs
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Streaming begins while the text is still being made.
        assert os.read(process.stdout.fileno(), 1) == b"x"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait(60) == 130


def test_a_reader_that_goes_away_is_no_error(checkpoint: Path) -> None:
    command = f"{sys.executable} -m mixerzoo generate {checkpoint} --prompt x --max-new-tokens 100000 | head -c 1"
    found = subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=120)
    assert (found.stdout, found.stderr) == (b"x", b"")


def test_a_stream_without_the_letters_of_an_equation() -> None:
    found = subprocess_run(["-m", "mixerzoo", "show", "depth_attention"], PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"depth_attention" in found.stdout
    found = subprocess_run(["-m", "mixerzoo", "list", "--json"], PYTHONIOENCODING="ascii")
    assert json.loads(found.stdout) == json.loads(output_of("list", "--json"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "residual", "--seconds", "nan"],
        ["check", "residual", "--seconds", "inf"],
        ["check", "residual", "--seconds", "-1"],
        ["import", "nowhere", "--out", "x", "--seed", "18446744073709551616"],
        ["import", "nowhere", "--out", "x", "--seed", "-1"],
        ["eval", "nowhere", "--limit", "1" + "0" * 30],
        ["eval", "nowhere", "--window", "1" + "0" * 30],
        ["eval", "nowhere", "--fewshot", "1" + "0" * 30],
        ["eval", "nowhere", "--batch-size", "1" + "0" * 30],
    ],
)
def test_numbers_of_options_are_bounded(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[-2]}'" in result.stderr
