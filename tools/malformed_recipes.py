"""Recipes that must not be read: every kind of malformed text and value, drawn from a seed.

``python tools/malformed_recipes.py DIRECTORY`` writes them as files, to be tried by hand.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

RECIPE = """\
model: {hidden_size: 16, intermediate_size: 24, num_layers: 2, num_heads: 2}
mixer: {name: residual}
data:
  source: {name: text, paths: [a.txt]}
  tokenizer: {name: bytes}
  sequence_length: 8
train: {steps: 1, batch_size: 1, learning_rate: 1e-3}
eval: {batch_size: 4}
seed: 3
"""
#: A value of the recipe and its key: what is replaced.
VALUES = {
    "hidden_size": "16",
    "intermediate_size": "24",
    "num_layers": "2",
    "num_heads": "2",
    "sequence_length": "8",
    "steps": "1",
    "learning_rate": "1e-3",
    "seed": "3",
    "batch_size": "4",
    "paths": "[a.txt]",
    "source": "{name: text, paths: [a.txt]}",
    "tokenizer": "{name: bytes}",
    "mixer": "{name: residual}",
    "eval": "{batch_size: 4}",
}


class Malformed(NamedTuple):
    """A recipe that is wrong.

    Attributes:
        kind: of the fault.
        content: of the file.
    """

    kind: str
    content: bytes


def malformed(count: int, seed: int = 0) -> Iterator[Malformed]:
    """``count`` recipes, each kind as often as the next.

    Args:
        count: how many.
        seed: of the draw.
    """
    draw = random.Random(seed)
    kinds = list(_KINDS.items())
    for number in range(count):
        kind, make = kinds[number % len(kinds)]
        made = make(draw)
        yield Malformed(kind, made if isinstance(made, bytes) else made.encode("utf-8", "surrogatepass"))


def _with(key: str, value: str) -> str:
    return RECIPE.replace(f"{key}: {VALUES[key]}", f"{key}: {value}", 1)


def _anywhere(draw: random.Random, *values: str) -> str:
    return _with(draw.choice(list(VALUES)), draw.choice(values))


def _nested(draw: random.Random) -> str:
    depth = draw.choice([45, 500, 20_000])
    opening, closing = draw.choice([("[", "]"), ("{a: ", "}"), ("{", "}"), ("- ", "")])
    text = opening * depth + closing * draw.choice([depth, 0])
    return _anywhere(draw, text) if opening != "- " else text


def _bomb(draw: random.Random) -> str:
    width, levels = draw.randint(5, 20), draw.randint(6, 12)
    parts = ["&l0 [" + ", ".join(["x" * draw.randint(1, 500)] * width) + "]"]
    for level in range(1, levels):
        parts.append(f"&l{level} [{', '.join([f'*l{level - 1}'] * width)}]")
    return _anywhere(draw, "[" + ", ".join(parts) + "]")


def _byte(draw: random.Random) -> bytes:
    content = bytearray(RECIPE.encode())
    content[draw.randrange(len(content))] = draw.choice([0, 1, 7, 27, 127, 0x80, 0xC0, 0xFF, 0xFE])
    return bytes(content)


def _too_large(draw: random.Random) -> str:
    filler = draw.choice(["# x\n", "\n", "k: v\n", "- 1\n", "a", " ", "[", '"', "&a *a "])
    return RECIPE + filler * (draw.choice([1_100_000, 10_000_000]) // len(filler))


def _large(draw: random.Random) -> str:
    """Just within the size of a file."""
    text = draw.choice(["x", "9", "[1],", "{a: 1},", "x y ", "'' , "])
    return _anywhere(draw, "[" + text * (900_000 // len(text)) + "]")


_BIG = ["1" + "0" * 18, "1" + "0" * 30, "-" + "9" * 99, "9" * 5000, "1e300", "-1e300", "1e400", ".inf", "-.inf", ".nan"]
_TAGS = ["int abc", "float x", "bool maybe", "timestamp x", "binary '?'", "set {a}", "omap [a: 1]", "python/none ''"]
_LOOKALIKES = {"a": "а", "e": "е", "o": "о", "s": "ѕ", "i": "і", "n": "ո", "_": "＿", ":": "："}

_NO_MAPPINGS = ["", "# nothing\n", "3", "- a\n", "text", "null", "--- \n...\n", "[]", "\ufeff"]
_MERGES = ["<<: 3\n", "<<: [1]\n", "<<: *x\n", "<<: {q: 1}\n", "<<: {}\n<<: {}\n"]
_DIRECTIVES = ["%YAML 1.1\n---\n", "%YAML 9.9\n---\n", "%TAG ! x\n", "%YAML x\n---\n"]


def _unknown_key(draw: random.Random) -> str:
    key = draw.choice(list(VALUES))
    return RECIPE.replace(f"{key}:", f"{key}{draw.choice('sx1')}:", 1)


def _date(draw: random.Random) -> str:
    return _with("paths", f"[{draw.randint(0, 9999):04}-{draw.randint(0, 99):02}-{draw.randint(0, 99):02}]")


_TYPES = ["null", "yes", "[1, 2]", "{a: {b: c}}", "''", "-1", "1.5", "0o17x"]
_TWICE = ["seed: 4\n", "model: {}\n", "'seed': 3\n", "? seed\n: 3\n"]
_NO_TEXT = ["1: 2\n", "null: 2\n", "[a]: 2\n", "{a: b}: 2\n", "true: 1\n"]
_SELF = ["&a [*a]", "&a {x: *a}", "&a {name: *a}", "&a {<<: *a}", "*nowhere"]
_ESCAPES = ['"\\0"', '"\\ud800"', '"\\UFFFFFFFF"', '"\\x"', '"\\q"']
_SEPARATORS = ["---\n", "...\n---\na: 1\n", "--- x\n"]


def _lookalike(draw: random.Random) -> str:
    key = draw.choice(list(VALUES))
    return RECIPE.replace(f"{key}:", "".join(_LOOKALIKES.get(letter, letter) for letter in key) + ":", 1)


_KINDS: dict[str, Callable[[random.Random], str | bytes]] = {
    "nested": _nested,
    "alias bomb": _bomb,
    "self reference": lambda draw: _anywhere(draw, *_SELF),
    "tag": lambda draw: _anywhere(draw, *(f"!!{tag}" for tag in _TAGS), "!own 3", "!!python/object:os.system {}"),
    "huge number": lambda draw: _anywhere(draw, *_BIG),
    "a byte": _byte,
    "too large": _too_large,
    "large": _large,
    "another type": lambda draw: _anywhere(draw, *_TYPES),
    "unknown key": _unknown_key,
    "lookalike": _lookalike,
    "a key twice": lambda draw: RECIPE + draw.choice(_TWICE),
    "no text key": lambda draw: RECIPE + draw.choice(_NO_TEXT),
    "cut short": lambda draw: RECIPE[: draw.randrange(len(RECIPE) - 60)],
    "no mapping": lambda draw: draw.choice(_NO_MAPPINGS),
    "several documents": lambda draw: RECIPE + draw.choice(_SEPARATORS) + RECIPE,
    "a tab": lambda draw: RECIPE.replace("  source", "\tsource"),
    "another encoding": lambda draw: RECIPE.encode(draw.choice(["utf-16", "utf-16-le", "utf-32", "cp037"])),
    "an escape": lambda draw: _anywhere(draw, *_ESCAPES),
    "a date": _date,
    "merge": lambda draw: RECIPE + draw.choice(_MERGES),
    "directive": lambda draw: draw.choice(_DIRECTIVES) + RECIPE,
    "a long word": lambda draw: RECIPE.replace("residual", "r" * draw.choice([300, 9_000, 20_000])),
    "noise": lambda draw: RECIPE + "".join(draw.choice("{}[]:,-&*!|>'\"%@`#?\n a1") for _ in range(200)) + "}: {",
}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    for index, each in enumerate(malformed(200)):
        (target / f"{index:03}-{each.kind.replace(' ', '-')}.yaml").write_bytes(each.content)
