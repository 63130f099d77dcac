"""How output looks: on terminals of 60, 80 and 120 columns, without colour, and where it is piped."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mixerzoo.cli import app, compare, results
from mixerzoo.cli.common import print_fitting, table
from mixerzoo.experiments import Comparison, Estimate, Inspection, SiteWeights
from mixerzoo.experiments.grid import Cell

WIDTHS = [60, 80, 120]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def shown(*arguments: str | Path, columns: int, **environment: str) -> str:
    variables = {"COLUMNS": str(columns), "TERM": "xterm-256color", **environment}
    result = CliRunner().invoke(app, list(map(str, arguments)), env=variables)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def column(text: str, header: str) -> list[str]:
    """The cells of a right-aligned column, by the last letter of its header."""
    lines = text.splitlines()
    top = next(line for line in lines if re.search(rf"\b{header}\b", line))
    end = re.search(rf"\b{header}\b", top)
    assert end is not None
    below = lines[lines.index(top) + 2 :]
    rows = below[: below.index("") if "" in below else None]
    return [row[: end.end()].rsplit("   ", 1)[-1].strip() for row in rows]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", [["list"], ["describe", "quickstart"], ["recipes"], ["show", "krom_hc"]])
def test_what_is_piped_has_no_control_codes_and_fits(command: list[str], columns: int) -> None:
    text = shown(*command, columns=columns)
    assert not CONTROL.search(text)
    # What cannot be loaded, and the recipe with its mixer, are told in lines that do not wrap.
    lines = text.partition("\nCould not be loaded")[0].splitlines()[command[0] == "describe" :]
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", WIDTHS)
def test_list_breaks_no_word(columns: int) -> None:
    mixers = json.loads(shown("list", "--json", columns=columns))["mixers"]
    told = Counter(shown("list", columns=columns).split())
    for key in ("name", "acts_on", "family"):
        words = Counter(word for mixer in mixers for word in mixer[key].split())
        assert words <= told, words - told
    places = [part for mixer in mixers for part in mixer["paper"].split("/") if "/" in mixer["paper"]]
    assert "modded-nanogpt" in places
    assert all(any(place in word for word in told) for place in places)


def looked_at(num_sources: int) -> Inspection:
    names = tuple(f"{n // 2} {('attention', 'mlp')[n % 2]}" for n in range(num_sources))
    weights = tuple(n / 100 for n in range(num_sources))
    tokens = ("def", " ", "\n", "x" * 50)
    site = SiteWeights(9, 9, "attention", "stream", names, weights, weights, (weights,) * len(tokens))
    return Inspection("attn_res", len(tokens), (site,), (5.5,) * 3, tokens)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("num_sources", [1, 5, 40])
def test_inspect_breaks_no_name_and_no_figure(
    columns: int, num_sources: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = looked_at(num_sources)
    monkeypatch.setattr("mixerzoo.experiments.inspect_checkpoint", lambda *arguments, **options: found)
    text = shown("inspect", tmp_path, "--prompt", "a", columns=columns)
    sites, tokens = text[text.index("Site") :].split("\n\n9 attention\n")
    assert max(map(len, text.splitlines()[1:])) <= columns
    assert not CONTROL.search(text)
    (site,) = found.sites
    for name, mean in zip(site.sources, site.mean, strict=True):
        assert f"{name}: {mean:.3f} ± {mean:.3f}" in sites
    # As many blocks of columns as it takes.
    rows = [line.split() for line in tokens.splitlines() if line.startswith("'def'")]
    figures = [word for row in rows for word in row if word[0].isdigit()]
    assert figures == [f"{mean:.3f}" for mean in site.mean]
    assert Counter(re.findall("attention|mlp", tokens)) == Counter(name.split()[1] for name in site.sources)


@pytest.mark.parametrize("columns", WIDTHS)
def test_describe_has_all_of_its_columns_and_breaks_no_figure(columns: int) -> None:
    text = shown("describe", "quickstart", columns=columns)
    header = next(line for line in text.splitlines() if "Extra" in line)
    assert header.split() == ["depth_attention", "residual", "Extra"]
    assert column(text, "residual")[:1] == ["3,148,608"]
    assert column(text, "Extra")[-1 if columns > 60 else -2] == "+0.0504 %"


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_figures_of_a_run(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    sizes = {"num_bytes": 1_234_567, "num_tokens": 234_567, "parameters": 3_148_608, "mixer_parameters": 0}
    costs = {"kv_bytes_per_token": 3072, "in_flight_bytes_per_token": 1792}
    scores = {"bits_per_byte": 2.14, "bigram_bits_per_byte": 3.6, "xz_bits_per_byte": None, "perplexity": 40.5}
    results.print_result({**sizes, **costs, **scores})
    text = capsys.readouterr().out
    assert not CONTROL.search(text)
    assert max(map(len, text.splitlines())) <= columns
    rows = dict(re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if "──" not in line)
    assert rows["validation"] == "1,234,567 bytes, 234,567 tokens"
    assert (rows["bits per byte"], rows["xz"], rows["parameters"]) == ("2.1400", "unknown", "3,148,608")


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_plan_of_a_comparison(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(comparison: Comparison, *arguments: object) -> list[Estimate]:
        cells = (Cell.of(variant, recipe, 0, None) for variant, recipe in comparison.variants.items())
        return [Estimate(cell, 3_148_608, 819_200, 4_740_000_000_000, 280 * 2**20, 9000.0) for cell in cells]

    monkeypatch.setattr("mixerzoo.experiments.estimates", planned)
    text = shown("compare", "quickstart", "--mixers", "residual,depth_attention", "--dry-run", columns=columns)
    assert not CONTROL.search(text)
    assert max(map(len, text.splitlines())) <= columns
    assert column(text, "parameters").count("3,148,608") == 2
    assert column(text, "memory").count("280 MiB") == 2
    assert column(text, "time").count("2.5 h") == 2
    assert "depth_attention," in text
    assert text.endswith("2 runs, roughly 5.0 h with --jobs 1 on this machine\n")
    assert ("What is left out for lack of columns: FLOPs" in text) == (columns == 60)
    assert ("4.74e+12" in text) == (columns > 60)


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_end_of_a_comparison(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = {"mean": 2.14371, "low": 2.1398, "high": 2.14762}
    difference = {"mean": -0.0123, "low": -0.0301, "high": 0.0055, "verdict": "no difference shown"}
    rows: list[dict[str, Any]] = [
        {
            "label": label,
            "bits_per_byte": interval,
            "difference": found,
            "parameters": 3_148_608,
            "cache_bytes": 786_432,
        }
        for label, found in (("residual", None), ("depth_attention", difference))
    ]
    found = {"baseline": "residual", "failures": [], "settings": [{"vary": {}, "mixers": rows}]}
    monkeypatch.setattr(compare, "_compare", lambda *arguments: found)
    text = shown("compare", "quickstart", "--mixers", "residual,depth_attention", "--out", "x", columns=columns)
    assert not CONTROL.search(text)
    assert max(len(line) for line in text.splitlines() if "report.html" not in line) <= columns
    for whole in ("residual", "depth_attention", "2.1437", "-0.0123", "shown"):
        assert re.search(rf"(?<!\S){re.escape(whole)}(?!\S)", text), whole
    assert "No difference to residual shown: depth_attention." in text
    assert "3,148,608" in text
    assert ("786,432" in text) == (columns > 60)


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_has_colour_unless_it_is_not_wanted(colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What rich goes by: whether this is a terminal, and NO_COLOR.
    unwanted = {} if colour else {"NO_COLOR": "1"}
    text = shown("describe", "quickstart", columns=80, FORCE_COLOR="1", **unwanted)
    codes = set(re.findall(r"\x1b\[([\d;]*)m", text))
    assert "1" in codes
    # Bold and dim are no colours.
    assert codes <= {"0", "1", "2", "3", "1;2"}
    assert re.sub(r"\x1b\[[\d;]*m", "", text) == shown("describe", "quickstart", columns=80)


def test_what_goes_first_is_said() -> None:
    listing = table("a name", "figure", "another")
    listing.add_row("depth_attention", "1,234,567", "7,654,321")
    for each in listing.columns:
        each.no_wrap = True
    narrow = Console(width=30, record=True, quiet=False, file=None, force_terminal=False)
    with narrow.capture() as captured:
        print_fitting(narrow, listing, ("another", "figure"))
    text = captured.get()
    assert "1,234,567" in text
    assert "7,654,321" not in text
    assert "another; `--json`" in " ".join(text.split())
