"""The README's badges say what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import badges

ROOT = Path(__file__).parents[1]


def test_badges_are_what_the_project_says_and_all_are_shown() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    images = ROOT / "docs" / "images"
    made = badges.badges(project)
    assert {path.name: path.read_text(encoding="utf-8") for path in images.glob("badge-*.svg")} == made
    shown = re.findall(r"!\[(.*?)\]\(docs/images/(badge-\w+\.svg)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {file: f"<title>{words}</title>" for words, file in shown} == {
        file: re.findall(r"<title>.*?</title>", svg)[0].replace("&gt;", ">").replace("&lt;", "<")
        for file, svg in made.items()
    }


def test_a_badge_tells_what_is_supported() -> None:
    made = badges.badges(
        {
            "license": "MIT",
            "classifiers": ["Programming Language :: Python :: 3", "Programming Language :: Python :: 3.12"],
            "dependencies": ["torchaudio>=1", "torch>=2.10,<2.16", "transformers>=5,<6"],
        }
    )
    assert "<title>license: MIT</title>" in made["badge-license.svg"]
    assert "<title>python: 3.12</title>" in made["badge-python.svg"]
    assert "<title>pytorch: &gt;=2.10, &lt;2.16</title>" in made["badge-pytorch.svg"]
