"""Errors that a user can act on, and how their words are made: the nearest name, and text of others made visible."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable


class MixerzooError(Exception):
    """Something the user can put right. The command line prints it and exits with code 2."""


class RecipeError(MixerzooError):
    """A recipe (or an override of one) says something that cannot be run."""


class MixerError(MixerzooError):
    """A mixer is unknown, or cannot work on the decoder it was asked to serve."""


class PluginError(MixerzooError):
    """A plugin cannot be loaded or breaks the rules of registration."""


class InputError(MixerzooError):
    """Tokens, padding or documents that a decoder cannot be called with."""


class CacheError(MixerzooError):
    """A cache was asked for something that it cannot hold or no longer has."""


class CheckpointError(MixerzooError):
    """A checkpoint is missing, damaged, or not of a kind that can be read."""


class DataError(MixerzooError):
    """Text or tokens are missing, malformed, or too few."""


class BackendError(MixerzooError):
    """An attention backend cannot run here."""


class RunError(MixerzooError):
    """A run directory is in the way, incomplete, or belongs to another recipe."""


class BenchmarkError(MixerzooError):
    """A benchmark was asked for something that it cannot time, or its decoders compute what they should not."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A trailing ``" (did you mean 'x'?)"``, or ``""`` where nothing is near.

    Args:
        name: what was written.
        known: the names that would have been right.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


#: What a terminal obeys instead of showing it: control characters but tab and line feed, line and paragraph
#: separators, marks that turn the direction of text, and halves of surrogate pairs, which cannot be written at all.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    r"""Text of others as a terminal may be given it: control characters written out, such as ``\x1b``.

    Args:
        text: of any origin; tabs and line feeds stay.
    """
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def error_line(error: BaseException) -> str:
    """An error in one line, with its type where it is not one of ours.

    Args:
        error: anybody's.
    """
    if isinstance(error, MixerzooError):
        text = str(error) or type(error).__name__
    elif isinstance(error, SyntaxError):
        text = f"{type(error).__name__}: {error}"  # with file and line
    else:
        text = traceback.format_exception_only(error)[0]  # which survives an error that cannot be printed
    return visible(" ".join(text.split()))
