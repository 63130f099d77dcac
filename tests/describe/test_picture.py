"""Pictures against their exact text, and every mark of them against what the mixer says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from mixerzoo import Mixer, Site
from mixerzoo.describe.picture import MAX_ROWS, picture
from paper_recipes import small_decoder

DEPTH_ATTENTION = """\
   e 0 1 2 3 4 5
1  · ● ●
2  · ● · ●
3  · ● · ● ●
4  · ● · ● · ●
5  · ● · ● · ● ●
● read   · not read
rows     attention of a layer
columns  e: the embedding, then attention of a layer"""

DENSEFORMER = """\
   e 0 1 2 3 4 5
1  ● · ●
3  ● · ● · ●
5  ● · ● · ● · ●
● read   · not read
rows     MLP of a layer
columns  e: the embedding, then MLP of a layer"""

ATTN_RES = """\
     e 0a 0m 1a 1m 2a 2m
0a   ●
0m   ●  ●
1a   ●  ●  ●
1m   ●  ●  ●  ●
2a   ●  ●  ●  ●  ●
2m   ●  ●  ●  ●  ●  ●
● read   · not read
rows     attention (a) and MLP (m) of a layer
columns  e: the embedding, then attention (a) and MLP (m) of a layer"""

LOOPED = """\
      e 0 1 2 3 4 5
1(1)  · ● ●
2(2)  · ● ● ●
3(1)  · ● ● · ●
4(2)  · ● · ● ● ●
5(3)  · ● · · ● ● ●
● read   · not read
rows     attention of a step, as step(layer)
columns  e: the embedding, then attention of a step"""

DEEP = """\
       e0         10        20        30        40
 1–24  ·●○○○○○○○○○○○○○○○○○○○○○○○○
25–47  ·●·······················●○○○○○○○○○○○○○○○○○○○○○○○
● read by all   ○ by some   · by none
rows     attention of a layer
columns  e: the embedding, then attention of a layer"""

PICTURES = {
    "depth_attention": (DEPTH_ATTENTION, {"name": "depth_attention", "stride": 2}, 6, {}),
    "denseformer": (DENSEFORMER, {"name": "denseformer", "dilation": 2, "period": 2}, 6, {}),
    "attn_res": (ATTN_RES, {"name": "attn_res"}, 3, {}),
    "looped": (
        LOOPED,
        {"name": "depth_attention", "stride": 1},
        4,
        {"loop": {"prelude": 1, "coda": 1, "count": 2}},
    ),
    "48 layers": (DEEP, {"name": "depth_attention"}, 48, {}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_text(name: str) -> None:
    expected, mixer, layers, changes = PICTURES[name]
    decoder = small_decoder(mixer, layers, **changes)
    assert picture(decoder) == expected
    assert picture(decoder.mixer) == expected


def test_picture_of_a_plain_residual_stream() -> None:
    assert picture(small_decoder({"name": "residual"})) == (
        "No site combines the outputs of others with weights of its own."
    )


MIXERS = (
    {"name": "depth_attention"},
    {"name": "depth_attention", "stride": 1},
    {"name": "depth_attention", "stride": 4, "recent_window": 3},
    {"name": "denseformer"},
    {"name": "denseformer", "dilation": 4},
    {"name": "denseformer", "dilation": 4, "period": 5},
    {"name": "attn_res"},
    {"name": "attn_res", "block_size": 6},
    {"name": "attn_res", "dialect": "snapshot", "block_size": 12},
)


def sources_by_reader(mixer: Mixer) -> dict[str, set[str]]:
    """Names of readers and of what they read, as the picture writes them, straight from the mixer."""
    found = {site: mixer.sources(site) for site in mixer.shape.sites()}
    found = {site: sources for site, sources in found.items() if sources}
    both_offer = len({s.branch for sources in found.values() for s in sources if s is not None}) == 2
    both_read = len({site.branch for site in found}) == 2

    def name(site: Site | None, both: bool) -> str:
        return "e" if site is None else f"{site.step}{site.branch[0] if both else ''}"

    return {name(site, both_read): {name(s, both_offer) for s in sources} for site, sources in found.items()}


@pytest.mark.parametrize(
    ("mixer", "layers"),
    # A period beyond the depth is refused.
    [(mixer, layers) for mixer in MIXERS for layers in (1, 6, 12, 24, 40, 48) if mixer.get("period", 1) <= layers],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_every_mark_of_a_picture_is_true(mixer: dict[str, Any], layers: int) -> None:
    decoder = small_decoder(mixer, layers)
    reads = sources_by_reader(decoder.mixer)
    # Wide enough that no two columns share a character.
    drawn = picture(decoder, width=140)
    lines = drawn.splitlines()
    if not reads:
        assert len(lines) == 1
        return
    readers = list(reads)
    names = ["e", *(f"{s}{b}" for s in range(layers) for b in ("am" if "MLP (m)" in lines[-1] else [""]))]
    grid = [line for line in lines[1:-3] if "more rows" not in line]
    assert len(grid) <= MAX_ROWS
    start = lines[0].index("e")
    cell = 1 if lines[0][start + 1] != " " else lines[0].index("0") - start
    if cell > 1 and names[1] != "0":
        cell = len(names[-1]) + 1
    seen: list[str] = []
    for line in grid:
        first, _, last = line[:start].strip().partition("–")
        group = readers[readers.index(first) : readers.index(last or first) + 1]
        seen += group
        for column, name in enumerate(names):
            mark = (line[start + cell * column :] or " ")[0]
            count = sum(name in reads[reader] for reader in group)
            expected = "●" if count == len(group) else "○" if count else None
            assert mark == expected if expected else mark in "· ", (line, name)
    if len(grid) == len(lines) - 4:
        assert seen == readers
    else:
        assert any("more rows" in line for line in lines)
        assert len(grid) == MAX_ROWS


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: "-".join(map(str, mixer.values())))
def test_grid_keeps_to_its_width_and_to_one_screen(mixer: dict[str, Any], width: int) -> None:
    for layers in (6, 24, 48, 200):
        *grid, _, _ = picture(small_decoder(mixer, layers), width).splitlines()
        assert max(map(len, grid)) <= width
        assert len(grid) <= MAX_ROWS + 3
        # Rows grow: what comes later is blank.
        ends = [len(line) for line in grid[1:-1] if "more rows" not in line]
        assert all(a <= b + 1 for a, b in pairwise(ends))
