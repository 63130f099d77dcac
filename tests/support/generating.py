"""`mixerzoo generate`, and what the library writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import command_line
import mixerzoo
from mixerzoo import TextFormat

run = partial(command_line.run, "generate")
text_of = partial(command_line.output_of, "generate")
error_of = partial(command_line.error_of, "generate")

GREEDY = ("--temperature", "0")
USER = {"role": "user", "content": "the fox"}
TURNS = [USER, {"role": "assistant", "content": "a dog"}, {"role": "user", "content": "é"}]


def follows(place: Path, ids: list[int], num_new: int) -> list[int]:
    """What the library writes after ids."""
    form, decoder = TextFormat.load(place), mixerzoo.load_checkpoint(place)
    whole = mixerzoo.generate(decoder, [ids], max_new_tokens=num_new, end_of_text=form.end_ids)
    found: list[int] = whole[0, len(ids) :].tolist()
    return found
