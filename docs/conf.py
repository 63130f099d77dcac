"""Sphinx configuration: ``pip install ".[docs]" && sphinx-build -W docs site``.

The build needs no network. With ``-t online`` names of Python, PyTorch and transformers link to their own pages.
"""

import os
import sys
from pathlib import Path
from typing import Any

from pygments.lexers.data import YamlLexer

from mixerzoo import __version__

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "mixerzoo"
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "results_pages",
    "mixer_pages",
    "command_pages",
    "joined_streams",
]
exclude_patterns = ["example-plugin", "_extensions"]

# Tutorials are run by the build, each in a directory of its own; a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# Where `mixerzoo` is for a cell of bash.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]

# A name in backticks is one of Python's where there is one of that name, and else code.
default_role = "py:obj"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "transformers": ("https://huggingface.co/docs/transformers/main/en", None),
}

html_theme = "furo"
html_title = "mixerzoo"
html_show_copyright = False
html_favicon = "_static/favicon.svg"
html_static_path = ["_static", "../mixerzoo/describe/mixer_page.css"]
html_css_files = ["mixer_page.css", "site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d4ed8", "color-brand-content": "#1d4ed8"},
    "dark_css_variables": {"color-brand-primary": "#7cacf8", "color-brand-content": "#8ab4f8"},
}
# Of a console, what is typed and not what is printed.
copybutton_prompt_text = "$ "
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def setup(app: Any) -> None:
    """Link to other projects if they can be reached; YAML that is not a whole recipe, which tests load, is ``yml``."""
    if app.tags.has("online"):
        app.setup_extension("sphinx.ext.intersphinx")
    app.add_lexer("yml", YamlLexer)
