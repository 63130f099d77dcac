"""Writing text with a decoder, and scoring it."""

from mixerzoo.inference.generation import generate, stream
from mixerzoo.inference.sampling import MOST_SEED, check_sampling, check_seed
from mixerzoo.inference.scoring import Progress, Score, accounting, score
from mixerzoo.inference.steps import check_chunk
from mixerzoo.inference.writing import Writing

__all__ = [
    "MOST_SEED",
    "Progress",
    "Score",
    "Writing",
    "accounting",
    "check_chunk",
    "check_sampling",
    "check_seed",
    "generate",
    "score",
    "stream",
]
