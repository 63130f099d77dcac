"""Text to token ids and back, for all three kinds of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mixerzoo.data.config import BYTES_VOCAB_SIZE
from mixerzoo.data.files import check_text, expand_user
from mixerzoo.data.pieces import SIZE, Cutter, Piece, words_apart
from mixerzoo.data.streaming import TokenStream, byte_names
from mixerzoo.data.tokenizer_files import (
    END_OF_TEXT,
    count_ids,
    declared_end_of_text,
    download_tokenizer,
    in_words,
    read_tokenizer,
    special_tokens,
    usual_end_of_text,
)
from mixerzoo.errors import DataError, did_you_mean
from mixerzoo.files import write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ANY_TEXT = "a"
# Text that is encoded at once: enough pieces for several cores, and encodings of about 200 MB.
_BATCH_PIECES = 4


class TextTokenizer:
    """A ``tokenizers.Tokenizer`` with an end-of-text token.

    Text is only ever text: where it contains the end-of-text token's own name, that is encoded like any other
    characters.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text: str) -> None:
        """Takes ``tokenizer`` over (truncation, padding and dropout of merges are switched off).

        Args:
            tokenizer: from the ``tokenizers`` library.
            end_of_text: the token that ends a document.

        Raises:
            DataError: the tokenizer has no token ``end_of_text``.
        """
        identifier = tokenizer.token_to_id(end_of_text)
        if identifier is None:
            near = did_you_mean(end_of_text, special_tokens(tokenizer))
            raise DataError(f"the tokenizer has no end-of-text token {end_of_text!r}{near}")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        # Not kept in tokenizer.json, so it is set here and not where a tokenizer is made.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.end_of_text = end_of_text
        self.end_of_text_id: int = identifier
        self.vocab_size: int = count_ids(tokenizer)

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
        tokenizer.train_from_iterator((part for text in texts for part in words_apart(text)), trainer)
        return cls(tokenizer, END_OF_TEXT)

    @classmethod
    def pretrained(cls, path: str, end_of_text: str | None = None) -> TextTokenizer:
        """An existing tokenizer.

        Args:
            path: a tokenizer.json, a directory that holds one, or a model name on the Hugging Face hub.
            end_of_text: the token that ends a document; by default the ``eos_token`` named in the
                tokenizer_config.json or special_tokens_map.json beside it, else the first ``eos_token_id`` of the
                config.json or generation_config.json there, else the first of the usual names that the tokenizer has.

        Raises:
            DataError: there is no such tokenizer, it is damaged, or its end-of-text token is not known.
        """
        local = expand_user(path)
        if local.is_dir():
            return cls.load(local, end_of_text)
        if local.exists():
            tokenizer = read_tokenizer(local)
            end_of_text = end_of_text or declared_end_of_text(local.parent, tokenizer)
        elif local.suffix == ".json" or path.startswith((".", "/", "~")):
            raise DataError(f"no such tokenizer: {path} (looked in {Path.cwd()})")
        else:
            tokenizer = download_tokenizer(path)
        return cls(tokenizer, end_of_text or usual_end_of_text(tokenizer, path))

    @classmethod
    def load(cls, directory: str | Path, end_of_text: str | None = None) -> TextTokenizer:
        """The tokenizer in a directory, as ``save`` or transformers wrote it.

        Args:
            directory: holds tokenizer.json and, unless ``end_of_text`` is given, what says how a text ends.
            end_of_text: as in ``pretrained``.

        Raises:
            DataError: tokenizer.json is missing or damaged, or the end-of-text token is not known.
        """
        directory = Path(directory)
        tokenizer = read_tokenizer(directory / "tokenizer.json")
        name = end_of_text or declared_end_of_text(directory, tokenizer)
        return cls(tokenizer, name or usual_end_of_text(tokenizer, str(directory)))

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
        write_text(directory / "tokenizer.json", self.to_json())
        write_text(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    def to_json(self) -> str:
        """The text of tokenizer.json; equal for equal tokenizers."""
        return self._tokenizer.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without any special token.

        Raises:
            DataError: the tokenizer has no tokens for it and none for the unknown, or it has half of a surrogate pair.
        """
        check_text(text, "the text")
        with in_words("the tokenizer cannot encode this text"):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` for several texts, on all cores."""
        for text in texts:
            check_text(text, "the text")
        with in_words("the tokenizer cannot encode this text"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_text(self, text: str) -> list[int]:
        """``encode`` for a text of any length, cut as in ``pieces``."""
        ids: list[int] = []
        batch: list[str] = []
        for piece in self.pieces(text):
            batch.append(piece.encoded)
            if len(batch) == _BATCH_PIECES:
                ids += [token for part in self.encode_batch(batch) for token in part]
                batch.clear()
        return ids + [token for part in self.encode_batch(batch) for token in part]

    def pieces(self, text: str, size: int = SIZE) -> Iterator[Piece]:
        """Cuts a long text so that encoding it takes little memory and all cores.

        The ids of ``piece.encoded``, one piece after the other, are those of the whole text.

        Args:
            text: any text.
            size: at least 1; a piece ends at the first good place after this many characters. Where there is none, as
                in text without spaces and line breaks, it is longer.
        """
        if len(text) <= size:
            return iter([Piece(text, text)])
        return self._cutter.pieces(text, size)

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._tokenizer)

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
        with in_words("the tokenizer cannot decode these tokens"):
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
        printed = self.decode(prompt, skip_special_tokens=skip_special_tokens) if len(prompt) else ""
        return TokenStream(self._tokenizer, prompt, skip_special_tokens, printed)
