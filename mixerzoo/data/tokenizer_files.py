"""Reads tokenizers that others made, and puts what the ``tokenizers`` library raises into words."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixerzoo.data.chat_template import shown
from mixerzoo.errors import DataError
from mixerzoo.files import read_bytes, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
"""The end-of-text token of the tokenizers made here."""

_USUAL_END_OF_TEXT = (
    END_OF_TEXT,
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
)
TOKENIZER_CONFIG = "tokenizer_config.json"
#: Files of a checkpoint that can name tokens which end a text.
_NAMES_ENDS = ("config.json", "generation_config.json")
_CHARSMAP = re.compile(r'"precompiled_charsmap"\s*:\s*"([^"]*)"')
# Several times what the largest vocabularies take.
_MOST_BYTES = 256 << 20
# Folders of a folder that are named in its place.
_MOST_NAMED = 3
# What other libraries keep a tokenizer in.
_OTHER_FORMATS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


@contextmanager
def in_words(problem: str) -> Iterator[None]:
    """Turns whatever the library raises into a DataError that begins with ``problem``.

    It raises bare ``Exception`` for most faults, and a panic of its Rust code is no ``Exception`` at all.
    """
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{problem}: {error}") from error


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json.

    Raises:
        DataError: it is missing, cannot be read, or is damaged.
    """
    from tokenizers import Tokenizer

    try:
        text = read_bytes(path, _MOST_BYTES).decode("utf-8")
    except FileNotFoundError as error:
        raise DataError(f"no tokenizer at {path}{_instead(path.parent)}") from error
    except OSError as error:
        raise DataError(f"cannot read tokenizer {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"tokenizer {path} is damaged: not UTF-8: {error}") from error
    _check_charsmaps(text, path)
    with in_words(f"tokenizer {path} is damaged"):
        return Tokenizer.from_str(text)


def _check_charsmaps(text: str, path: Path) -> None:
    """Refuse SentencePiece's table of characters where it says that it is longer than it is.

    The library takes the memory for what it says first, and ends the process where there is not so much.

    Raises:
        DataError: it is damaged.
    """
    for found in _CHARSMAP.finditer(text):
        try:
            table = base64.b64decode(found[1])
        except ValueError as error:
            raise DataError(f"tokenizer {path} is damaged: its precompiled_charsmap: {error}") from error
        # The size of a trie in bytes, the trie, and then texts.
        size = int.from_bytes(table[:4], "little")
        if size > len(table) - 4:
            raise DataError(f"tokenizer {path} is damaged: its precompiled_charsmap is cut short")


def download_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a model on the Hugging Face hub.

    Raises:
        DataError: there is none, or the hub is out of reach.
    """
    from tokenizers import Tokenizer

    with in_words(f"tokenizer {name!r}: no such file, and the Hugging Face hub does not give it"):
        return Tokenizer.from_pretrained(name)


def usual_end_of_text(tokenizer: Tokenizer, where: str) -> str:
    """The first of the usual names of an end-of-text token that the tokenizer has.

    Args:
        tokenizer: from the ``tokenizers`` library.
        where: names it in the error.

    Raises:
        DataError: it has none of them.
    """
    for name in _USUAL_END_OF_TEXT:
        if tokenizer.token_to_id(name) is not None:
            return name
    special = ", ".join(map(repr, special_tokens(tokenizer))) or "none"
    raise DataError(
        f"tokenizer {where}: which token ends a text? Say so with eos_token in a tokenizer_config.json "
        f"beside it, or in a recipe with end_of_text (its special tokens: {special})"
    )


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """The names of the tokens that were added to the vocabulary."""
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def declared_end_of_text(directory: Path, tokenizer: Tokenizer) -> str | None:
    """The token that a directory's files say ends a text; None where they say nothing.

    That is the ``eos_token`` of the tokenizer's files, a string or a serialised AddedToken; without one, the first
    ``eos_token_id`` of the model's that is one of its tokens.

    Args:
        directory: of the tokenizer.
        tokenizer: from the ``tokenizers`` library.

    Raises:
        DataError: a file cannot be read or is damaged, or names an id that cannot be one.
    """
    found = None
    for _, content in files_of_names(directory, read_object_if_any(directory / TOKENIZER_CONFIG)):
        token = content.get("eos_token")
        if isinstance(token, dict):
            token = token.get("content")
        found = token if isinstance(token, str) else found
    if found is not None:
        return found
    names = map(tokenizer.id_to_token, configured_ends(directory, count_ids(tokenizer)))
    return next((name for name in names if name is not None), None)


def files_of_names(directory: Path, config: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """The files that can name special tokens, and what they hold; of a name in several, the last counts.

    Args:
        directory: of the tokenizer.
        config: the content of its tokenizer_config.json.

    Raises:
        DataError: a file cannot be read or is damaged.
    """
    found = [(directory / TOKENIZER_CONFIG, config)]
    # An older layout, which transformers reads where the newer one is not there.
    if "added_tokens_decoder" not in config:
        older = directory / "special_tokens_map.json"
        found.append((older, read_object_if_any(older)))
    return found


def configured_ends(directory: Path, vocab_size: int) -> list[int]:
    """The ``eos_token_id`` of config.json and of generation_config.json.

    Args:
        directory: of the checkpoint.
        vocab_size: of the tokenizer.

    Raises:
        DataError: a file cannot be read or is damaged, or names an id that cannot be one.
    """
    configs = {name: read_object_if_any(directory / name) for name in _NAMES_ENDS}
    rows = configs["config.json"].get("vocab_size")
    # Rows beyond the tokens, with which many models are filled up, can be written too.
    limit = max(vocab_size, rows if isinstance(rows, int) else 0)
    return [
        end
        for name, content in configs.items()
        for end in _ids(content.get("eos_token_id"), f"{directory / name}: eos_token_id", limit)
    ]


def count_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id; ids may have gaps, so the count of tokens would not do."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def read_object_if_any(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    if not path.exists():
        return {}
    return read_object(path, DataError)


def _ids(value: object, where: str, limit: int) -> list[int]:
    """Token ids, of which there may be none, one or several."""
    given: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    for each in given:
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < limit:
            raise DataError(
                f"{where} is {shown(value)}; it must be a token's id, from 0 to {limit - 1}, or a list of them"
            )
    return given


def _instead(directory: Path) -> str:
    """What lies there in place of a tokenizer.json, and how one is made of it; or which folders in there have one."""
    found = [name for name in _OTHER_FORMATS if (directory / name).exists()]
    if not found:
        within = sorted(str(path.parent) for path in directory.glob("*/tokenizer.json"))[:_MOST_NAMED]
        return f"; there is one in {' and in '.join(within)}" if within else ""
    return (
        f": there is only {found[0]}, another format; transformers makes a tokenizer.json of it: "
        f"AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
    )
