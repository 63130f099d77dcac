"""Sphinx configuration: ``pip install ".[docs]" && sphinx-build -W docs site``."""

project = "mixerzoo"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "mixerzoo"
myst_heading_anchors = 3
exclude_patterns = ["example-plugin"]
