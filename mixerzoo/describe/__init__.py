"""What a recipe costs, which layers read which, and what a mixer says of itself."""

from mixerzoo.describe.compared import COMPARED, TOKENS, Figures, figures, short, with_defaults
from mixerzoo.describe.description import BASELINE, MFU, Description, describe
from mixerzoo.describe.diagram import diagram
from mixerzoo.describe.mathml import mathml
from mixerzoo.describe.mixer_page import DRAWN, LETTERS, glance, mixer_page
from mixerzoo.describe.options import Option, options, snippet

__all__ = [
    "BASELINE",
    "COMPARED",
    "DRAWN",
    "LETTERS",
    "MFU",
    "TOKENS",
    "Description",
    "Figures",
    "Option",
    "describe",
    "diagram",
    "figures",
    "glance",
    "mathml",
    "mixer_page",
    "options",
    "short",
    "snippet",
    "with_defaults",
]
