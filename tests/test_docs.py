"""The documentation tells the truth: its snippets run, its tables hold, its links lead somewhere."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

import mixerzoo
import mixerzoo.testing
import publish_results
from mixerzoo.cli import COMMANDS, app
from mixerzoo.data import (
    BpeTokenizer,
    DataConfig,
    HfSource,
    PretrainedTokenizer,
    StdlibSource,
    TextSource,
    WeightedSource,
)
from mixerzoo.experiments import CompareConfig, read_comparison
from mixerzoo.model.config import LoopConfig, ModelConfig
from mixerzoo.model.rope import LinearScaling, Llama3Scaling, YarnScaling
from mixerzoo.recipe.optimizer import (
    AdafactorOptimizer,
    AdamwOptimizer,
    LionOptimizer,
    MuonOptimizer,
    ParameterGroup,
    ParameterGroups,
    VectorGroup,
    WidthScaling,
)
from mixerzoo.recipe.parallel import FsdpConfig
from mixerzoo.recipe.read import load_recipe
from mixerzoo.recipe.recipe import EvalConfig, TrainConfig
from mixerzoo.training.run import train
from runs import OVERRIDES, tiny_recipe

ROOT = Path(__file__).parent.parent
MIXER_PAGES = sorted((ROOT / "docs" / "mixers").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "api").glob("*.md")),
    *sorted((ROOT / "docs" / "commands").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *MIXER_PAGES,
]
#: The project's own mixers, and not what else happens to be installed.
MIXERS = {e.mixer.name: e.mixer for e in mixerzoo.load_registry().entries.values() if e.distribution == "mixerzoo"}
#: So that the commands of a page run in seconds; they change sizes, not what is done.
FAST = [
    *(override for override in OVERRIDES if override.split(".")[0] in ("model", "data", "eval")),
    "train.steps=4",
    "train.log_interval=2",
]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory like a clone's, in which the quickstart has been run."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "recipes", place / "recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERZOO_CACHE", str(place / "cache"))
        train(tiny_recipe(), place / "runs" / "quickstart")
        yield place


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python")], ids=lambda page: page.stem)
def test_python_snippets_run(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    namespace: dict = {"__name__": "snippets"}
    with torch.enable_grad():  # and back to what it was, whatever a snippet sets
        for code in _blocks(page, "python"):
            exec(compile(code, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "bash")], ids=lambda page: page.stem)
def test_commands_run(page, workplace, monkeypatch, tmp_path):
    monkeypatch.chdir(workplace)
    for line in "".join(_blocks(page, "bash")).splitlines():
        for command in line.split("&&"):
            words = shlex.split(command.split(" > ")[0])
            if words[0] != "mixerzoo":
                # Installing, testing and committing are what CI does.
                assert words[0] in ("pip", "pytest", "python", "source", "pre-commit", "HYPOTHESIS_PROFILE=thorough")
                continue
            if "--tasks" in words and find_spec("lm_eval") is None:
                continue  # it is large, so CI does without it
            arguments = words[1:]
            if arguments[0] == "compare":
                # The grid's own keys are not to be overridden. tests/experiments runs some.
                varied = dict(read_comparison(words[2]).settings[0]) if words[2].startswith("recipes/compare/") else {}
                arguments += [*(o for o in FAST if o.split("=")[0] not in varied), "--dry-run"]
            if arguments[0] == "bench":
                sizes = [override for override in FAST if override.startswith("model.")]
                arguments += [*sizes, "model.num_kv_heads=2", "--tokens=8", "--rounds=1"]
            if arguments[0] == "train":
                overrides = [o for o in FAST if o.split("=")[0] not in {w.split("=")[0] for w in words}]
                if "--resume" in arguments:
                    overrides += [w for w in FAST if w.startswith("train.steps")]
                arguments = [*arguments, *overrides, *([] if "--resume" in arguments else ["--overwrite"])]
                if any(w.startswith("train.steps=") and w != "train.steps=4" for w in words):
                    arguments.append("train.steps=4")
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_snippets_are_valid(page, tmp_path):
    whole = load_recipe(ROOT / "recipes" / "quickstart.yaml").to_yaml()
    for text in _blocks(page, "yaml"):
        path = tmp_path / "recipe.yaml"
        if text.startswith("compare:"):
            path.write_text(f"{whole}\n{text}")
            read_comparison(path)
            continue
        # A snippet of one section is put into a whole recipe.
        path.write_text(text if "train:" in text else re.sub(r"^mixer:\n(  .*\n)+", text, whole, flags=re.MULTILINE))
        load_recipe(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("model", ModelConfig),
        ("model.loop", LoopConfig),
        ("model.rope_scaling: {rope_type: linear}", LinearScaling),
        ("model.rope_scaling: {rope_type: yarn}", YarnScaling),
        ("model.rope_scaling: {rope_type: llama3}", Llama3Scaling),
        ("data", DataConfig),
        ("data.sources", WeightedSource),
        ("data.source: {name: stdlib}", StdlibSource),
        ("data.source: {name: text}", TextSource),
        ("data.source: {name: hf}", HfSource),
        ("data.tokenizer: {name: bpe}", BpeTokenizer),
        ("data.tokenizer: {name: pretrained}", PretrainedTokenizer),
        ("train", TrainConfig),
        ("train.fsdp", FsdpConfig),
        ("train.optimizer: {name: adamw}", AdamwOptimizer),
        ("train.optimizer: {name: muon}", MuonOptimizer),
        ("train.optimizer: {name: adafactor}", AdafactorOptimizer),
        ("train.optimizer: {name: lion}", LionOptimizer),
        ("train.groups", ParameterGroups),
        ("train.groups: embedding, head, matrices, mixer", ParameterGroup),
        ("train.groups: vectors", VectorGroup),
        ("train.width_scaling", WidthScaling),
        ("eval", EvalConfig),
    ],
)
def test_every_key_of_a_recipe_is_documented(title, model):
    page = (ROOT / "docs" / "recipes.md").read_text()
    section = page.split(f"### {title}\n", 1)[1].split("\n###", 1)[0]
    for name, field in model.model_fields.items():
        if name in ("name", "rope_type"):
            continue
        default = field.default
        if default is PydanticUndefined:
            shown = "required"
        elif default is None or isinstance(default, BaseModel):
            shown = ""
        else:
            default = list(default) if isinstance(default, tuple) else default  # as YAML has it
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
        assert f"| `{name}` | {shown} | {field.description} |" in section


def test_every_key_of_a_comparison_is_documented():
    page = (ROOT / "docs" / "compare.md").read_text()
    for name, field in CompareConfig.model_fields.items():
        assert f"| `{name}` | {field.description} |" in page


def test_every_command_has_a_page_that_runs_it_and_has_its_options():
    index = (ROOT / "docs" / "command-line.md").read_text()
    assert {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")} == set(COMMANDS)
    for command in COMMANDS:
        page = (ROOT / "docs" / "commands" / f"{command}.md").read_text()
        assert page.startswith(f"# mixerzoo {command}\n")
        (example,) = re.findall(r"^```\{run\}\n(?::[^\n]*\n)*(.*?)^```", page, re.MULTILINE | re.DOTALL)
        assert example.startswith(f"mixerzoo {command}")
        assert f"```{{command}} {command}\n```" in page
        assert f"[`{command}`](commands/{command}.md)" in index
        assert f"\ncommands/{command}\n" in index


def test_every_exit_code_is_documented():
    table = (ROOT / "docs" / "command-line.md").read_text().partition("## Exit codes")[2].partition("##")[0]
    documented = set(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE)))
    source = "".join(path.read_text() for path in (ROOT / "mixerzoo" / "cli").glob("*.py"))
    raised = {
        int(code)
        for found in re.findall(r"typer\.Exit\((.*?)\)(?: from|$)", source, re.M)
        for code in re.findall(r"\d+", found)
    }
    assert raised <= documented
    assert {0, 2} <= documented


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_has_a_page_that_names_its_options(name):
    page = ROOT / "docs" / "mixers" / f"{name}.md"
    text = page.read_text()
    assert text.startswith(f"# {name}\n")
    assert MIXERS[name].card.paper.removeprefix("arXiv ") in text
    for option in MIXERS[name].Config.model_fields:
        assert f"`{option}`" in text, option
    assert any(f"mixer:\n  name: {name}\n" in snippet for snippet in _blocks(page, "yaml"))


@pytest.mark.parametrize("name", MIXERS)
def test_the_gallery_says_of_every_mixer_what_its_card_says(name):
    card = MIXERS[name].card
    number = card.paper.removeprefix("arXiv ")
    paper = f"[{number}](https://arxiv.org/abs/{number})" if number != card.paper else card.paper
    row = f"| [{name}](mixers/{name}.md) | {card.summary} | {card.kv_bytes} | {paper} |"
    assert row.replace("|  |", "| |") in (ROOT / "docs" / "mixers.md").read_text().splitlines()


def test_every_mixer_page_is_of_a_mixer():
    assert {page.stem for page in MIXER_PAGES} == set(MIXERS)


def test_every_call_of_the_mixer_interface_is_documented():
    page = (ROOT / "docs" / "mixers.md").read_text()
    public = [name for name in vars(mixerzoo.Mixer) if not name.startswith("_")]
    for name in public:
        assert f"`{name}" in page or f"{name}(" in page, name


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "commands").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_of_examples_are_ones(path: Path):
    assert load_recipe(path).train.steps


def test_the_changelog_names_the_version():
    assert f"## {mixerzoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_page_of_results_says_what_the_published_comparison_found():
    page, results = publish_results.PAGE.read_text(), publish_results.read_published()
    assert publish_results.with_tables(page, results) == page
    for setting in results["settings"]:
        (table,) = re.findall(rf"^{re.escape(publish_results.heading(setting))}(.*?)(?=^## |\Z)", page, re.M | re.S)
        rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([\d.]+) \(([\d.]+)\sto\s([\d.]+)\) \|", table, re.MULTILINE)
        found = {label: tuple(map(float, figures)) for label, *figures in rows}
        assert found.keys() == {row["label"] for row in setting["mixers"]}
        for row in setting["mixers"]:
            expected = [row["bits_per_byte"][key] for key in ("mean", "low", "high")]
            assert found[row["label"]] == pytest.approx(expected, abs=6e-5)


def test_the_published_comparison_is_of_its_recipe_is_whole_and_all_beat_the_bigram_yardstick():
    results = publish_results.read_published()
    asked = read_comparison(ROOT / results["source"])
    assert (results["finished"], results["failures"]) == (results["runs"], [])
    assert results["seeds"] == list(asked.seeds)
    assert list(results["recipes"]) == [contender.label for contender in asked.contenders]
    told = [{key: str(value) for key, value in setting["vary"].items()} for setting in results["settings"]]
    assert told == [dict(each) for each in asked.settings]
    for setting in results["settings"]:
        assert max(row["bits_per_byte"]["mean"] for row in setting["mixers"]) < setting["bigram_bits_per_byte"]


@pytest.mark.parametrize("module", [mixerzoo, mixerzoo.ops, mixerzoo.testing], ids=lambda module: module.__name__)
def test_the_reference_has_every_public_name_once(module):
    listed = []
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for block in re.findall(r"^\.\. currentmodule:: (\S+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if block[0] == module.__name__:
                listed += re.findall(r"^\.\. [\w:]+:: (\w+)$", block[1], re.MULTILINE)
    # `ops` is a page of its own.
    assert sorted(listed) == sorted(set(module.__all__) - {"ops"})


def undocumented(module):
    """Public classes and functions of a module, and public methods of those classes, without a docstring."""
    found = []
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)) or value is Any:
            continue
        members = vars(value).items() if inspect.isclass(value) else ()
        own = [
            (f"{name}.{key}", member.fget if isinstance(member, property) else getattr(value, key))
            for key, member in members
            if not key.startswith("_") and (isinstance(member, property) or inspect.isroutine(getattr(value, key)))
        ]
        found += [label for label, each in [(name, value), *own] if not inspect.getdoc(each)]
    return found


@pytest.mark.parametrize("module", [mixerzoo, mixerzoo.ops, mixerzoo.testing], ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring(module):
    assert undocumented(module) == []


def test_what_is_undocumented_is_found():
    class Some:
        """A class."""

        def method(self):
            pass

        @property
        def size(self):
            pass

    module = types.SimpleNamespace(__all__=["Some", "f"], Some=Some, f=lambda: 0)
    assert undocumented(module) == ["Some.method", "Some.size", "f"]


def test_the_bibliography_has_every_paper_of_a_card_and_nothing_that_no_page_names():
    text = (ROOT / "docs" / "references.bib").read_text()
    papers = re.findall(r"eprint = \{([\d.]+)\}|url = \{https://(github\S+)\}", text)
    listed = {number or address for number, address in papers}
    pages = "".join(page.read_text() for page in MIXER_PAGES)
    assert {mixer.card.paper.removeprefix("arXiv ") for mixer in MIXERS.values() if mixer.card.paper} <= listed
    assert all(paper in pages for paper in listed)
    for number in re.findall(r"eprint = \{(\S+)\}", text):
        assert f"https://arxiv.org/abs/{number}" in text
        assert f"year = {{20{number[:2]}}}" in text.partition(f"eprint = {{{number}}}")[0].rpartition("@misc")[2]
