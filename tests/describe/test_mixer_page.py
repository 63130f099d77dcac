"""A mixer's page, from `mixerzoo show --html` and in the documentation."""

from __future__ import annotations

import re
from html import escape

import pytest
from typer.testing import CliRunner, Result

import mixerzoo
from mixerzoo.cli import app
from mixerzoo.describe import COMPARED, figures, glance, options, with_defaults
from own import OWN


def shown(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["show", *arguments])


@pytest.mark.parametrize("name", OWN)
def test_a_page_says_what_the_card_and_the_options_say(name: str) -> None:
    result = shown(name, "--html")
    assert (result.exit_code, result.stderr) == (0, "")
    page = result.stdout
    mixer = mixerzoo.load_registry().get(name).mixer
    card = mixer.card
    for text in (card.title, card.summary, card.paper, card.acts_on, card.kv_bytes, card.neutral, card.notes):
        assert escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    for option in options(mixer):
        assert f"<code>{option.name}</code>" in page
    for dialect in card.dialects:
        assert f"<dt><code>{dialect}</code></dt>" in page
    assert ("<svg" in page) == (name != "compose")
    # One file.
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_the_figures_are_those_that_list_compares() -> None:
    mixer = mixerzoo.load_registry().get("value_residual").mixer
    assert figures(with_defaults(mixer, COMPARED)) == (46, 1.0, 2.0)
    cells = re.findall(r"<td>(.*?)</td>", glance(mixer))
    assert cells[1::2] == ["46", "1×", "2×"]


def test_what_needs_options_is_drawn_with_those_of_a_recipe() -> None:
    mixer = mixerzoo.load_registry().get("compose").mixer
    assert "the key &#39;of&#39; is required" in glance(mixer)
    drawn = glance(mixer, {"of": [{"name": "denseformer"}]})
    assert "with the options of the recipe below" in drawn
    assert drawn.count("<path") == 1 + 2 + 3 + 4 + 5 + 6


def test_one_output_is_asked_for() -> None:
    result = shown("residual", "--html", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--html and --json are two outputs" in result.stderr
