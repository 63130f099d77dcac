"""The command line: what it prints, how it fails, and how long it takes to start."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from typer.testing import CliRunner, Result

import mixerzoo
from mixerzoo.cli import COMMANDS, app, schema
from mixerzoo.cli.common import print_error
from mixerzoo.data import TextTokenizer
from mixerzoo.describe import options, snippet
from mixerzoo.errors import CheckpointError
from mixerzoo.mixer.registry import Registry
from mixerzoo.recipe.schema import json_schema
from mixerzoo.yaml_text import from_yaml, to_yaml
from own import CHOICES, OWN

RECIPE: dict[str, Any] = {
    "model": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 6,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
    "mixer": {"name": "depth_attention", "stride": 2},
    "data": {"source": {"name": "stdlib"}, "tokenizer": {"name": "bytes"}, "sequence_length": 64},
    "train": {"steps": 1, "batch_size": 1, "learning_rate": 0.001},
}
END_OF_TEXT = 256


def run(*arguments: str | Path, columns: int = 80, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env={"COLUMNS": str(columns)})


def output_of(*arguments: str | Path, columns: int = 80) -> str:
    result = run(*arguments, columns=columns)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def error_of(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    return result.stderr


def subprocess_run(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A real run, in an environment without a terminal's settings."""
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "PYTHONIOENCODING")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        check=False,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(to_yaml(RECIPE))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    mixerzoo.save_checkpoint(mixerzoo.build(RECIPE), directory)
    TextTokenizer.for_bytes().save(directory)
    return directory


def squeezed(text: str) -> str:
    return "".join(text.split())


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


# list.


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_list_shows_every_mixer_in_full(columns: int) -> None:
    # What cannot be loaded is told in lines that do not wrap.
    shown = output_of("list", columns=columns).partition("\nCould not be loaded")[0]
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    # Cells wrap, so their characters are looked for one column of the table at a time.
    start = [shown.splitlines()[0].index(header) for header in ("Acts on", "Parameters")] if columns >= 80 else None
    for entry in map(mixerzoo.load_registry().get, OWN):
        card = entry.mixer.card
        assert entry.mixer.name in shown
        assert columns < 200 or card.paper in shown
        assert card.family in shown
        if start is not None:
            column = squeezed("".join(line[start[0] : start[1]] for line in shown.splitlines()))
            assert squeezed(card.acts_on) in column


@pytest.mark.parametrize("columns", [80, 120])
def test_list_shows_where_every_mixer_comes_from(columns: int) -> None:
    shown = output_of("list", columns=columns).partition("\nWith default options")[0]
    entries = mixerzoo.load_registry().entries.values()
    for origin in {f"{entry.distribution} {entry.version}" for entry in entries}:
        of_it = [entry for entry in entries if f"{entry.distribution} {entry.version}" == origin]
        assert shown.count(origin) == len(of_it)
    if columns == 120:
        lines = {line.split()[0]: line for line in shown.splitlines() if line[:1].isalpha()}
        for entry in entries:
            assert lines[entry.mixer.name].rstrip().endswith(f"{entry.distribution} {entry.version}")


def test_list_compares_figures_of_one_decoder() -> None:
    rows = {line.split()[0]: line for line in output_of("list", columns=200).splitlines() if line.strip()}
    # 24 layers: 24 + 1 values-and-keys slots of 48; source layers 0 and 12, each a key and a value as wide as a state.
    assert re.search(r" 0\s+0\.52×\s+1× ", rows["svformer"])
    assert re.search(r" 0\s+1×\s+5× ", rows["depth_attention"])
    assert re.search(r" 324\s+1×\s+25× ", rows["denseformer"])
    found = json.loads(output_of("list", "--json"))
    (mixer,) = (mixer for mixer in found["mixers"] if mixer["name"] == "svformer")
    assert mixer["compared"] == {"parameters": 0, "cache_relative": 25 / 48, "in_flight_relative": 1.0}


def test_list_json() -> None:
    found = json.loads(output_of("list", "--json"))
    assert not [broken for broken in found["broken_plugins"] if broken["plugin"].startswith("mixerzoo:")]
    entries = mixerzoo.load_registry().entries
    assert {mixer["name"] for mixer in found["mixers"]} == set(entries)
    assert found["mixers"][0]["name"] == "residual"
    (mixer,) = (mixer for mixer in found["mixers"] if mixer["name"] == "depth_attention")
    card = entries["depth_attention"].mixer.card
    assert mixer["kv_bytes_per_token"] == card.kv_bytes
    assert mixer["in_flight_bytes_per_token"] == card.in_flight_bytes
    assert mixer["parameters"] == "0"
    assert (mixer["distribution"], mixer["version"]) == ("mixerzoo", mixerzoo.__version__)


def test_list_reports_broken_plugins_and_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad_plugin.py").write_text("raise ValueError('[red]out of order[/red]')")
    monkeypatch.syspath_prepend(tmp_path)
    points = [*entry_points(group="mixerzoo"), EntryPoint("bad", "bad_plugin", "mixerzoo")]
    registry = Registry(points)
    monkeypatch.setattr("mixerzoo.mixer.load_registry", lambda: registry)
    shown = output_of("list")
    assert "depth_attention" in shown
    assert "unknown:bad: ValueError: [red]out of order[/red]" in shown
    found = json.loads(output_of("list", "--json"))
    assert len(found["mixers"]) == len(mixerzoo.load_registry().entries)
    (broken,) = (broken for broken in found["broken_plugins"] if broken["plugin"] == "unknown:bad")
    assert broken["reason"] in broken["details"]
    assert "Traceback" in broken["details"]


# show.


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", OWN)
def test_show_tells_the_whole_card(name: str, columns: int) -> None:
    shown = output_of("show", name, columns=columns)
    card = mixerzoo.load_registry().get(name).mixer.card
    rest = squeezed(shown)
    for text in (card.title, card.summary, card.paper, card.equation, card.notes):
        assert squeezed(text) in rest
    for words in (card.acts_on, card.parameters, card.kv_bytes, card.in_flight_bytes, card.neutral):
        assert all(word in shown for word in words.split() if len(word) < 20)
    for option in options(mixerzoo.load_registry().get(name).mixer):
        assert option.name in shown


@pytest.mark.parametrize("name", [name for name in OWN if CHOICES[name] == {"name": name}])
def test_the_snippet_can_be_pasted(name: str, tmp_path: Path) -> None:
    shown = output_of("show", name, columns=60)
    pasted = shown[shown.index("\nmixer:\n") + 1 :]
    choice = from_yaml(pasted)["mixer"]
    mixer = mixerzoo.load_registry().get(name).mixer
    assert choice == {"name": name, **mixer.Config().model_dump(mode="json")}
    path = tmp_path / "pasted.yaml"
    path.write_text(to_yaml({**RECIPE, "mixer": None}).replace("mixer: null\n", pasted))
    assert json.loads(output_of("describe", path, "--json"))["mixer"] == choice


def test_show_json() -> None:
    found = json.loads(output_of("show", "attn_res", "--json"))
    card = mixerzoo.load_registry().get("attn_res").mixer.card
    assert found["equation"] == card.equation
    assert found["dialects"] == dict(card.dialects)
    dialect, block_size, _ = found["options"]
    assert (dialect["name"], dialect["type"], dialect["default"]) == ("dialect", "kimi | snapshot", "kimi")
    assert (block_size["type"], block_size["default"], block_size["required"]) == ("whole number ≥ 1", 1, False)
    assert from_yaml(found["recipe"])["mixer"]["block_size"] == 1


def test_types_of_options_in_words() -> None:
    class Inner(mixerzoo.MixerConfig):
        depth: int = 1

    class Config(mixerzoo.MixerConfig):
        layers: int = Field(ge=1, le=2**40, description="How many.")
        share: float | None = Field(None, gt=0, lt=0.5)
        mode: Literal["on", "off"] = "on"
        only: Literal["this"] = "this"
        flag: bool = True
        names: tuple[str, ...] = Field(default_factory=lambda: ("a", "b"))
        inner: Inner = Inner()
        anything: Any = None

    mixer = type("Some", (mixerzoo.Mixer,), {"name": "some", "Config": Config})
    found = {option.name: (option.type, option.default) for option in options(mixer)}
    assert found == {
        "layers": ("whole number ≥ 1, ≤ 1099511627776", None),
        "share": ("number > 0, < 0.5 or null", None),
        # YAML 1.1 reads a bare on or off as true or false.
        "mode": ("'on' | 'off'", "on"),
        "only": ("this", "this"),
        "flag": ("true or false", True),
        "names": ("list of text", ["a", "b"]),
        "inner": ("mapping", {"depth": 1}),
        "anything": ("any value", None),
    }
    lines = snippet(mixer).splitlines()
    assert lines[:3] == ["mixer:", "  name: some", "  layers:  # required, whole number ≥ 1, ≤ 1099511627776"]
    values = from_yaml(snippet(mixer))["mixer"]
    assert (values["mode"], values["names"], values["inner"]) == ("on", ["a", "b"], {"depth": 1})


# describe.


@pytest.mark.parametrize("columns", [80, 120])
def test_describe_puts_the_costs_beside_the_baseline(recipe: Path, columns: int) -> None:
    shown = output_of("describe", recipe, "train.precision=bf16", columns=columns)
    assert max(map(len, shown.splitlines()[1:])) <= columns
    assert shown.startswith(f"{recipe}: depth_attention (stride 2, recent_window 0")
    assert "bytes in bfloat16" in " ".join(shown.split())
    rows = {line[:24].strip(): line[24:].split() for line in shown.splitlines() if line[:1].isalpha()}
    kv = f"{2 * 6 * 2 * 8 * 2:,}"
    assert rows["KV bytes per token"] == [kv, kv, "0", "%"]
    # Three sources in flight.
    assert rows["In-flight bytes per toke"][-4:] == ["256", "64", "+300", "%"]
    assert rows["Mixer parameters"] == ["0", "0", "0", "%"]
    assert "\n4  · ● · ● · ●\n" in shown


def test_describe_a_baseline_has_nothing_beside_it(recipe: Path) -> None:
    shown = output_of("describe", recipe, "mixer={name: residual}")
    assert "Extra" not in shown
    assert "No site combines" in shown


def test_describe_json_holds_the_same_numbers(recipe: Path) -> None:
    found = json.loads(output_of("describe", recipe, "mixer={name: denseformer}", "--json"))
    assert found["mixer"] == {"name": "denseformer", "dilation": 1, "period": 1}
    assert found["mixer_parameters"] == sum(range(2, 8))
    assert found["parameters"] == found["decoder_parameters"] + found["mixer_parameters"]
    assert found["kv_bytes_per_token"] == 2 * 6 * 2 * 8 * 4
    assert found["cache_bytes"] == 64 * found["kv_bytes_per_token"]
    assert found["extra_percent"]["mixer_parameters"] is None
    shown = output_of("describe", recipe, "mixer={name: denseformer}")
    for key in ("parameters", "mixer_parameters", "in_flight_bytes_per_token", "flops_per_token"):
        assert f"{found[key]:,}" in shown
        assert f"{found['residual'][key]:,}" in shown
    assert "new" in shown


def test_describe_a_deep_model_fits_80_columns(recipe: Path) -> None:
    for mixer in ("{name: attn_res}", "{name: denseformer}", "{name: depth_attention}"):
        shown = output_of("describe", recipe, f"mixer={mixer}", "model.num_layers=48")
        assert max(map(len, shown.splitlines()[1:])) <= 80


# schema.


def test_schema() -> None:
    assert json.loads(output_of("schema")) == json_schema()


# generate.


def generated(checkpoint: Path, *arguments: str | Path, stdin: str | None = None) -> str:
    result = run("generate", checkpoint, *arguments, stdin=stdin)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def test_generate_greedy_is_what_the_library_generates(checkpoint: Path) -> None:
    tokenizer = TextTokenizer.for_bytes()
    prompt = "def f(é):\n"
    tokens = mixerzoo.generate(
        mixerzoo.load_checkpoint(checkpoint),
        torch.tensor([tokenizer.encode(prompt)]),
        max_new_tokens=12,
        end_of_text=END_OF_TEXT,
    )
    expected = tokenizer.decode(tokens[0].tolist())
    found = generated(checkpoint, "--prompt", prompt, "--max-new-tokens", "12", "--temperature", "0")
    assert found == expected + "\n"


def test_generate_repeats_itself_with_its_seed(checkpoint: Path) -> None:
    arguments = ("--prompt", "a", "--max-new-tokens", "20", "--top-k", "200", "--top-p", "0.99")
    texts = [generated(checkpoint, *arguments, "--seed", seed) for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("a") for text in texts)


def test_generate_takes_its_prompt_from_anywhere(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("from a file é\n", encoding="utf-8")
    none = ("--max-new-tokens", "0")
    assert generated(checkpoint, "--prompt-file", file, *none) == "from a file é\n\n"
    assert generated(checkpoint, "--prompt-file", "-", *none, stdin="from a pipe é") == "from a pipe é\n"
    file.write_bytes(b"\xff")
    assert "not valid UTF-8" in error_of("generate", checkpoint, "--prompt-file", file)


def test_generate_begins_a_new_text_after_the_end_of_text(checkpoint: Path) -> None:
    tokens = mixerzoo.generate(
        mixerzoo.load_checkpoint(checkpoint),
        torch.tensor([[END_OF_TEXT]]),
        max_new_tokens=5,
        end_of_text=END_OF_TEXT,
    )
    expected = TextTokenizer.for_bytes().decode(tokens[0].tolist()) + "\n"
    assert generated(checkpoint, "--max-new-tokens", "5", "--temperature", "0") == expected


def test_generate_stops_at_the_end_of_text(checkpoint: Path) -> None:
    decoder = mixerzoo.load_checkpoint(checkpoint)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        # Every hidden state is the vector of ones, and only the end of text likes it.
        decoder.model.embed_tokens.weight.fill_(1)
        decoder.model.norm.weight.fill_(1)
        decoder.lm_head.weight[END_OF_TEXT] = 1
    mixerzoo.save_checkpoint(decoder, checkpoint)
    assert generated(checkpoint, "--prompt", "all", "--temperature", "0") == "all\n"


def test_generate_in_another_dtype(checkpoint: Path) -> None:
    assert generated(checkpoint, "--prompt", "a", "--max-new-tokens", "3", "--dtype", "bfloat16", "--device", "cpu")


def test_generate_refuses_a_tokenizer_that_does_not_belong(checkpoint: Path) -> None:
    texts = ["to be or not to be that is the question"] * 20
    TextTokenizer.train_bpe(texts, 280).save(checkpoint)
    message = error_of("generate", checkpoint)
    assert "the tokenizer has" in message
    assert "the decoder only 257" in message


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
