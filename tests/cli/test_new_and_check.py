"""`mixerzoo new`, `mixerzoo check`, and the tutorial's plugin: installed and used as a stranger would.

Two packages, one written by `mixerzoo new` and one copied from docs/example-plugin, are installed with pip in an
environment of their own, from a folder outside the repository.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import command_line
from mixerzoo.mixer.registry import load_registry
from mixerzoo.recipe.read import load_recipe
from mixerzoo.testing import CHECKS, checks_for
from mixerzoo.testing.check import SECONDS

run, error_of = (partial(function, columns=120) for function in (command_line.run, command_line.error_of))

ROOT = Path(__file__).parents[2]
#: mixer → its distribution.
PLUGINS = {"learned_gain": "mixerzoo-learned-gain", "recall": "mixerzoo-recall"}
TINY = (
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.num_layers=2",
    "data.source.max_bytes=100000",
    "data.sequence_length=32",
    "train.steps=3",
    "train.batch_size=2",
    "eval.max_sequences=3",
)


@dataclass(frozen=True)
class Place:
    """A folder with the sources of both plugins, and a Python in which they are installed."""

    folder: Path
    python: Path

    def run(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of this Python with these arguments."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "COV"))}
        done = subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd or self.folder,
            env={**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1", **environment},
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    def source(self, name: str) -> Path:
        """The module of a plugin."""
        return self.folder / name / "src" / f"mixerzoo_{name}" / "__init__.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    # What the new environment does not have, it finds where these tests do: torch need not be installed again.
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})\n" for path in sorted(outer)]
    (Path(own) / "outer.pth").write_text("".join(lines))
    place = Place(folder, python)
    code, output, errors = place.run("-m", "mixerzoo", "new", "learned_gain")
    assert code == 0, errors
    assert "learned_gain/pyproject.toml" in output
    shutil.copytree(
        ROOT / "docs" / "example-plugin", folder / "recall", ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"),
            *("--no-deps", "--no-build-isolation", "--no-index"),
            *(folder / name for name in PLUGINS),
        ],
        check=True,
        cwd=folder,
    )
    return place


# Installed next to mixerzoo.


def test_list_says_where_they_come_from(place: Place) -> None:
    code, output, errors = place.run("-m", "mixerzoo", "list", "--json")
    assert code == 0, errors
    listed = {mixer["name"]: mixer for mixer in json.loads(output)["mixers"]}
    assert json.loads(output)["broken_plugins"] == []
    assert listed.keys() == {*load_registry().entries, *PLUGINS}
    for name, distribution in PLUGINS.items():
        assert (listed[name]["distribution"], listed[name]["version"]) == (distribution, "0.1.0")
    code, output, _ = place.run("-m", "mixerzoo", "list")
    assert all(f"{distribution} 0.1.0" in output for distribution in PLUGINS.values())


@pytest.mark.parametrize("name", ["recall", pytest.param("learned_gain", marks=pytest.mark.slow)])
def test_check_passes(place: Place, name: str) -> None:
    reference = ("--reference", f"tests.naive_{name}:REFERENCE")
    code, output, errors = place.run("-m", "mixerzoo", "check", name, *reference, cwd=place.folder / name)
    assert (code, errors) == (0, ""), output + errors
    ran = checks_for(load_registry().get("residual").mixer)
    lines = [line.split() for line in output.splitlines() if " passed " in line]
    skipped = {"10.3": "checkpoints", "10.5": "cases", "10.6": "refused", "10.7": "shown"}
    passing = [check for check in ran if check.clause not in skipped]
    assert [line[:3] for line in lines if len(line) == 4] == [[check.clause, check.name, "passed"] for check in passing]
    for clause, missing in skipped.items():
        assert f"Skipped {clause}: the reference gives no {missing}." in output
    assert (
        f"{name} ({PLUGINS[name]} 0.1.0): {len(passing)} passed, {len(skipped)} skipped, in " in output.splitlines()[-1]
    )


@pytest.mark.parametrize("name", ["learned_gain", pytest.param("recall", marks=pytest.mark.slow)])
def test_their_own_tests_pass(place: Place, name: str) -> None:
    code, output, errors = place.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=place.folder / name)
    assert code == 0, output + errors
    ran = checks_for(load_registry().get("residual").mixer)
    assert f"{len(ran) - 4} passed, 4 skipped" in output


@pytest.mark.parametrize("name", PLUGINS)
def test_they_train_from_their_recipe(place: Place, name: str) -> None:
    recipe = place.folder / name / "recipe.yaml"
    code, output, errors = place.run(
        *("-m", "mixerzoo", "train", recipe, *TINY, "--json"), MIXERZOO_CACHE=str(place.folder / "cache")
    )
    assert code == 0, errors
    assert json.loads(output)["bits_per_byte"] > 0
    saved = (place.folder / "runs" / "recipe" / "recipe.yaml").read_text()
    assert f"name: {name}" in saved
    shutil.rmtree(place.folder / "runs")


#: mixer, text in its module, what a mistake makes of it, and the checks that must catch it. Two are in CI.
TWINS = [
    ("recall", "b * state.embedding", "b * state.embedding.mean(1, keepdim=True)", ["causality", "cached_decoding"]),
    ("recall", "return 3 * self.shape", "return 30 * self.shape", ["flops"]),
    ("recall", "nn.init.ones_(weight[:1])", "nn.init.zeros_(weight[:1])", ["neutral_settings"]),
    ("learned_gain", "nn.init.ones_(self.gain)", "nn.init.normal_(self.gain)", ["no_chance", "neutral_settings"]),
    ("learned_gain", "return state + gain * y", "return state.add_(gain * y)", ["inputs_untouched"]),
    ("learned_gain", "gain * y", "gain.detach() * y", ["every_parameter_learns"]),
    ("learned_gain", "state + gain * y", "state + gain.square() * y", ["reference_logits"]),
    ("recall", "range(config.period, shape", "range(1, shape", ["reference_logits", "reference_start"]),
]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "caught_by"),
    [
        pytest.param(*twin, id=twin[2], marks=() if number in (0, 6) else pytest.mark.slow)
        for number, twin in enumerate(TWINS)
    ],
)
def test_a_broken_twin_is_caught_by_name(
    place: Place, tmp_path: Path, name: str, right: str, wrong: str, caught_by: Sequence[str]
) -> None:
    text = place.source(name).read_text(encoding="utf-8")
    assert text.count(right) == 1
    package = tmp_path / f"mixerzoo_{name}"
    package.mkdir()
    (package / "__init__.py").write_text(text.replace(right, wrong), encoding="utf-8")
    only = [word for check in (*caught_by, "card") for word in ("--only", check)]
    # The naive reference lies beside the twin as it does beside the original.
    shutil.copy(place.folder / name / "tests" / f"naive_{name}.py", tmp_path)
    reference = ("--reference", f"naive_{name}:REFERENCE")
    code, output, errors = place.run("-m", "mixerzoo", "check", name, *only, *reference, PYTHONPATH=str(tmp_path))
    assert code == 1, output + errors
    assert "Traceback" not in output + errors
    assert "passed" in next(line for line in output.splitlines() if " card " in line)
    for check in caught_by:
        assert "failed" in next(line for line in output.splitlines() if f" {check} " in line)
        assert f"clause {CHECKS[check].clause} ({check}): {CHECKS[check].summary}\n" in output
    # The first alone has a snippet, and it fails as it stands.
    assert f"rerun({caught_by[0]!r}, " in output
    assert output.count("rerun(") == 1
    snippet = "from mixerzoo.testing" + output.split("from mixerzoo.testing", 1)[1].split("\n\nclause", 1)[0]
    snippet = snippet[: snippet.rindex("rerun(")] + snippet[snippet.rindex("rerun(") :].splitlines()[0]
    code, _, errors = place.run("-c", snippet, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "AssertionError: " in errors or "RuntimeError: " in errors


# new.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two words", "'two words' is not an identifier"),
        ("1st", "'1st' is not an identifier"),
        ("gated-sum", "'gated-sum' is not an identifier"),
        ("größe", "'größe' is not an identifier"),
        ("", "'' is not an identifier"),
        ("../up", "'../up' is not an identifier"),
        ("lambda", "'lambda' is a keyword of Python"),
        ("GatedSum", "'GatedSum': a mixer's name is in lower case"),
        ("_hidden", "'_hidden': a mixer's name"),
        ("denseformer", "a mixer named 'denseformer' is installed already, by mixerzoo 0"),
        ("plugins", "a Python package named 'mixerzoo_plugins' is installed already"),
    ],
)
def test_new_refuses_a_name(name: str, words: str, tmp_path: Path) -> None:
    assert words in error_of("new", name, "--dir", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    assert "is not empty; nothing was written" in error_of("new", "some_mixer", "--dir", tmp_path)
    assert "is a file; nothing was written" in error_of("new", "some_mixer", "--dir", tmp_path / "kept")
    assert "kept/below cannot be written" in error_of("new", "some_mixer", "--dir", tmp_path / "kept" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "kept"
    assert "Missing argument 'NAME'" in error_of("new")


def test_new_writes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert run("new", "some_mixer").exit_code == 0
    assert run("new", "some_mixer", "--dir", "empty").exit_code == 0
    assert run("new", "some_mixer", "--dir", "two/down").exit_code == 0
    written = {path.relative_to("some_mixer") for path in Path("some_mixer").rglob("*") if path.is_file()}
    assert written == {
        *map(Path, ("pyproject.toml", "README.md", ".gitignore", "recipe.yaml")),
        *map(Path, ("tests/naive_some_mixer.py", "tests/test_some_mixer.py")),
        Path("src/mixerzoo_some_mixer/__init__.py"),
    }
    for path in written:
        text = (Path("some_mixer") / path).read_text(encoding="utf-8")
        assert "$" not in text
        assert (Path("empty") / path).read_text(encoding="utf-8") == text
        assert (Path("two/down") / path).exists()


@pytest.mark.parametrize("name", ["mixer", "config", "tensor", "site", "a__b", "x1"])
def test_new_works_with_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("new", name, "--dir", tmp_path).exit_code == 0
    namespace: dict[str, object] = {"__name__": f"mixerzoo_{name}"}
    exec(compile((tmp_path / "src" / f"mixerzoo_{name}" / "__init__.py").read_text(), name, "exec"), namespace)
    (mixer,) = namespace["mixerzoo_mixers"]()  # type: ignore[operator]
    assert mixer.name == name
    # The recipe is valid but for the mixer, which is not installed.
    assert load_recipe(tmp_path / "recipe.yaml", ["mixer={name: residual}"]).train.steps > 0


def test_the_wheel_holds_the_templates(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True,
        capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    templates = {f"mixerzoo/cli/templates/{path.name}" for path in (ROOT / "mixerzoo" / "cli" / "templates").iterdir()}
    assert len(templates) == 7
    assert templates <= set(zipfile.ZipFile(wheel).namelist())


# check.


def test_check_prints_json() -> None:
    result = run("check", "residual", "--only", "card", "--only", "causality", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (found["mixer"], found["distribution"], found["profile"], found["ok"]) == (
        *("residual", "mixerzoo", "quick"),
        True,
    )
    assert [(r["clause"], r["check"], r["outcome"]) for r in found["results"]] == [
        ("1.1", "causality", "passed"),
        ("4.6", "card", "passed"),
    ]
    assert found["results"][0]["demands"] == CHECKS["causality"].summary


def test_check_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECONDS, "quick", -1.0)
    result = run("check", "residual", "--only", "4.6")
    assert "4.6 card took too long: 18 of its 18 cases were left out." in result.stdout
    result = run("check", "residual", "--only", "4.6", "--json")
    assert [(r["check"], r["cases"], r["cut"]) for r in json.loads(result.stdout)["results"]] == [("card", 0, 18)]


def test_check_holds_options_fixed() -> None:
    result = run("check", "denseformer", "period=99", "--only", "every_parameter_learns", "--json")
    assert "period 99 is longer than the decoder" in result.stdout
    assert not json.loads(result.stdout)["ok"]
    result = run("check", "denseformer", "period=1", "--only", "in_flight_bytes", "--json")
    assert json.loads(result.stdout)["ok"]


def test_check_takes_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ("--only", "reference_logits", "--only", "reference_checkpoints")
    result = run("check", "depth_attention", *wanted, "--reference", "naive.depth_attention:REFERENCE", "--json")
    assert [r["outcome"] for r in json.loads(result.stdout)["results"]] == ["passed", "passed"]
    result = run("check", "depth_attention", *wanted, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ok"]) == (2, False)
    assert [(r["outcome"], r["message"]) for r in found["results"]] == [("skipped", "no reference was given")] * 2
    # One that lies in the current directory, and is another method's.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_reference.py").write_text(
        "from mixerzoo.testing import Reference\n"
        "from mixerzoo.testing.reference import TokenMixer\n"
        "PLAIN = Reference(lambda mixer: lambda embedding, token: TokenMixer(embedding))\n"
    )
    result = run("check", "depth_attention", *wanted[:2], "--reference", "own_reference:PLAIN")
    assert result.exit_code == 1
    assert "clause 10.1 (reference_logits): " in result.stdout
    assert "from own_reference import PLAIN\n" in result.stdout
    assert "rerun('reference_logits', DepthAttention, case, PLAIN)" in result.stdout


def test_check_stops_at_its_budget() -> None:
    result = run("check", "residual", "--seconds", "0")
    # What knows nothing of the mixer must not be green.
    assert result.exit_code == 2
    assert "causality" in result.stdout
    assert "Nothing ran, so nothing is known." in result.stdout
    assert f"{len(checks_for(load_registry().get('residual').mixer))} skipped" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["denseforme"], "no mixer is named 'denseforme' (did you mean 'denseformer'?)"),
        (["residual", "--only", "casuality"], "no check is named 'casuality' (did you mean 'causality'?)"),
        (["residual", "--only", "shards"], "the check 'shards' is slow and runs only in the thorough profile"),
        (["denseformer", "perod=2"], "options of denseformer: perod: unknown key (did you mean 'period'?)"),
        (["denseformer", "period=0"], "options of denseformer: period: input should be greater than or equal to 1"),
        (["denseformer", "period"], "'period': expected key.path=value"),
        (["compose", "stride=2"], "options of compose: "),
        (["residual", "--reference", "naive"], "--reference 'naive': expected module:name"),
        (["residual", "--reference", "no.such:X"], "--reference 'no.such:X': no.such cannot be imported: No module"),
        (["residual", "--reference", "zoo:X"], "'zoo:X' is not a mixerzoo.testing.Reference: there is no such name"),
        (["residual", "--reference", "zoo:MODEL"], "is not a mixerzoo.testing.Reference: it is of type dict"),
        (["residual", "--seconds", "-1"], "Invalid value for '--seconds'"),
        ([], "Missing argument 'NAME'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_check_says_what_is_wrong_with_the_call(arguments: list[str], words: str) -> None:
    assert words in error_of("check", *arguments)


def test_check_without_the_extra_says_what_to_install() -> None:
    program = """
import sys
sys.modules["hypothesis"] = None
from mixerzoo.cli import main
sys.argv = ["mixerzoo", "check", "residual"]
main()
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert 'pip install "mixerzoo[testing]"' in found.stderr
    assert "Traceback" not in found.stderr


def test_help_of_check_imports_no_torch() -> None:
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mixerzoo", "check", "--help"], capture_output=True, check=True
    )
    assert b"torch" not in found.stderr
    assert b"hypothesis" not in found.stderr
