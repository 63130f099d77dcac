"""Text to token ids and back, for all three kinds of tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixerzoo.data.config import BYTES_VOCAB_SIZE
from mixerzoo.data.streaming import TokenStream, byte_names
from mixerzoo.errors import DataError, did_you_mean

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

_ANY_TEXT = "a"

# Pre-tokenisers of byte-level BPE always cut between a letter or digit and a line break.
_END_OF_WORD = re.compile(r"(?<=[^\W_])\n")


class TextTokenizer:
    """A ``tokenizers.Tokenizer`` with an end-of-text token.

    Text is only ever text: where it contains the end-of-text token's own name, that is encoded like any other
    characters.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text: str) -> None:
        """Takes ``tokenizer`` over (truncation and padding are switched off).

        Args:
            tokenizer: from the ``tokenizers`` library.
            end_of_text: the token that ends a document.

        Raises:
            DataError: the tokenizer has no token ``end_of_text``.
        """
        identifier = tokenizer.token_to_id(end_of_text)
        if identifier is None:
            near = did_you_mean(end_of_text, _special_tokens(tokenizer))
            raise DataError(f"the tokenizer has no end-of-text token {end_of_text!r}{near}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Not kept in tokenizer.json, so it is set here and not where a tokenizer is made.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.end_of_text = end_of_text
        self.end_of_text_id: int = identifier
        # Ids may have gaps, so the count of tokens would not do.
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def for_bytes(cls) -> TextTokenizer:
        """One token a byte: the ids are the values of the text's UTF-8 bytes, and 256 ends a text."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(byte_names())}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_TEXT])
        return cls(tokenizer, END_OF_TEXT)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """Byte-level BPE trained on ``texts``; the same texts give the same tokenizer.

        Args:
            texts: the training documents, read once.
            vocab_size: at least 257. All ids are below it; a small text may fill fewer.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocab_size < BYTES_VOCAB_SIZE:
            raise DataError(f"bpe needs a vocab_size of at least {BYTES_VOCAB_SIZE}, got {vocab_size}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
        return cls(tokenizer, END_OF_TEXT)

    @classmethod
    def pretrained(cls, path: str, end_of_text: str | None = None) -> TextTokenizer:
        """An existing tokenizer.

        Args:
            path: a tokenizer.json, a directory that holds one, or a model name on the Hugging Face hub.
            end_of_text: the token that ends a document; by default the ``eos_token`` named in the
                directory's tokenizer_config.json, else the first of the usual names that the tokenizer has.

        Raises:
            DataError: there is no such tokenizer, it is damaged, or its end-of-text token is not known.
        """
        local = Path(path).expanduser()
        if local.is_dir():
            return cls.load(local, end_of_text)
        if local.is_file():
            tokenizer = _read(local)
        elif local.suffix == ".json" or path.startswith((".", "/", "~")):
            raise DataError(f"no such tokenizer: {path} (looked in {Path.cwd()})")
        else:
            tokenizer = _download(path)
        return cls(tokenizer, end_of_text or _usual_end_of_text(tokenizer, path))

    @classmethod
    def load(cls, directory: str | Path, end_of_text: str | None = None) -> TextTokenizer:
        """The tokenizer in a directory, as ``save`` or transformers wrote it.

        Args:
            directory: holds tokenizer.json and, unless ``end_of_text`` is given, tokenizer_config.json.
            end_of_text: as in ``pretrained``.

        Raises:
            DataError: tokenizer.json is missing or damaged, or the end-of-text token is not known.
        """
        directory = Path(directory)
        tokenizer = _read(directory / "tokenizer.json")
        name = end_of_text or _declared_end_of_text(directory / "tokenizer_config.json")
        return cls(tokenizer, name or _usual_end_of_text(tokenizer, str(directory)))

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json, and a tokenizer_config.json with which transformers can load it.

        Args:
            directory: created if need be.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end_of_text,
            "clean_up_tokenization_spaces": False,
        }
        (directory / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def to_json(self) -> str:
        """The text of tokenizer.json; equal for equal tokenizers."""
        return self._tokenizer.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without any special token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` for several texts, on all cores."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_text(self, text: str) -> list[int]:
        """``encode`` for a text of any length, cut as in ``pieces``."""
        return [token for ids in self.encode_batch(list(pieces(text))) for token in ids]

    @property
    def prefix(self) -> list[int]:
        """The ids that the tokenizer itself puts before every text, such as a BOS token; none of ours does."""
        bare = self.encode(_ANY_TEXT)
        ids = self._tokenizer.encode(_ANY_TEXT, add_special_tokens=True).ids
        return ids[: next((n for n in range(len(ids)) if ids[n : n + len(bare)] == bare), 0)]

    @property
    def special_tokens(self) -> dict[str, int]:
        """The names of the special tokens, such as the end of text, and their ids."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items()) if token.special}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: any integers. Those that name no token, as a model with more rows than the tokenizer has tokens may
                give, stand for no text.
            skip_special_tokens: leave out special tokens such as the end of text.
        """
        known = [token for token in ids if 0 <= token < 2**32]
        return self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens)

    def stream(self, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True) -> TokenStream:
        """Decodes ids one at a time, as a continuation of a prompt.

        ``"".join(map(stream.step, ids)) + stream.finish()`` is ``decode(prompt + ids)`` without ``decode(prompt)`` at
        its beginning. Where the prompt ends within a character, so that the first does not begin with the second, it
        is without the beginning that they share.

        Args:
            prompt: the ids before the first step.
            skip_special_tokens: as in ``decode``.
        """
        return TokenStream(
            self._tokenizer, prompt, skip_special_tokens, self.decode(prompt, skip_special_tokens=skip_special_tokens)
        )


def pieces(text: str, size: int = 1 << 20) -> Iterator[str]:
    """Cuts a long text so that encoding it takes little memory and all cores.

    The pieces are cut between the end of a word and a line break, where byte-level BPE cuts anyway: their ids
    are the ids of the whole. (A pretrained tokenizer of another family may give other ids right at a cut.)

    Args:
        text: any text.
        size: at least 1; a piece ends at the first such place after this many characters.
    """
    start = 0
    while found := _END_OF_WORD.search(text, start + size):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _special_tokens(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def _usual_end_of_text(tokenizer: Tokenizer, where: str) -> str:
    for name in _USUAL_END_OF_TEXT:
        if tokenizer.token_to_id(name) is not None:
            return name
    special = ", ".join(map(repr, _special_tokens(tokenizer))) or "none"
    raise DataError(
        f"tokenizer {where}: which token ends a text? Say so with end_of_text (its special tokens: {special})"
    )


def _declared_end_of_text(path: Path) -> str | None:
    """``eos_token`` of a tokenizer_config.json, which is a string or a serialised AddedToken."""
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    token = config.get("eos_token") if isinstance(config, dict) else None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"no tokenizer at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read tokenizer {path}: {error}") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise DataError(f"tokenizer {path} is damaged: {error}") from error


def _download(name: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_pretrained(name)
    except Exception as error:  # network, hub and file faults share no narrower class
        raise DataError(
            f"tokenizer {name!r}: no such file, and the Hugging Face hub does not give it: {error}"
        ) from error
