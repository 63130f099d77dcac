"""Encoding in pieces is encoding the whole, for every kind of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mixerzoo.data import TextTokenizer
from mixerzoo.data.pieces import words_apart

END = "</s>"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The pattern of cl100k_base and its successors, where punctuation takes line breaks along.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

# Few characters, so that the tokenizers below learn merges in all company, which a wrong cut would lose.
short = st.text("ab9_.' \n\r", max_size=40)
words = st.sampled_from(
    ["a", "b", "ab", " a", " b", "  ", "\n", "a b", "9", ".", "é", "_", "</s>", "new", " new b ", "\x00"]
)
long = st.lists(words, max_size=300).map("".join)


def corpus() -> list[str]:
    random = Random(0)
    return ["".join(random.choices("ab9_.' \n\r", [5, 5, 1, 1, 1, 1, 6, 2, 1], k=40)) for _ in range(1000)]


def trained(
    model: models.Model,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None,
    normalizer: normalizers.Normalizer | None = None,
    train_apart: pre_tokenizers.PreTokenizer | None = None,
    vocab_size: int = 500,
) -> TextTokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if (apart := train_apart or pre_tokenizer) is not None:
        tokenizer.pre_tokenizer = apart
    options = {"vocab_size": vocab_size, "special_tokens": [END, "?"], "show_progress": False}
    if isinstance(model, models.BPE):
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    if isinstance(model, models.Unigram):
        options["unk_token"] = "?"
    kind = {
        models.BPE: trainers.BpeTrainer,
        models.Unigram: trainers.UnigramTrainer,
        models.WordPiece: trainers.WordPieceTrainer,
        models.WordLevel: trainers.WordLevelTrainer,
    }[type(model)]
    tokenizer.train_from_iterator(corpus(), kind(**options))
    if train_apart is not None:
        data = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return TextTokenizer(tokenizer, END)


def split(pattern: str, then: pre_tokenizers.PreTokenizer = BYTE_LEVEL) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), then])


def llama(train_apart: pre_tokenizers.PreTokenizer | None) -> TextTokenizer:
    """BPE over ▁, with one put before every text and nothing that splits."""
    put_before = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return trained(models.BPE(unk_token="?", fuse_unk=True), None, put_before, train_apart)


ADDED = [AddedToken("new"), AddedToken("ab", single_word=True), AddedToken("9", lstrip=True), AddedToken("\n a")]
ACROSS = [AddedToken("new", lstrip=True), AddedToken("b new", rstrip=True), AddedToken("a b a", normalized=False)]


def with_added(tokenizer: TextTokenizer, added: list[AddedToken]) -> TextTokenizer:
    inner = Tokenizer.from_str(tokenizer.to_json())
    inner.add_tokens(added)
    return TextTokenizer(inner, END)


METASPACE = pre_tokenizers.Metaspace
KINDS: dict[str, Callable[[], TextTokenizer]] = {
    "bytes": TextTokenizer.for_bytes,
    "bpe": lambda: TextTokenizer.train_bpe(corpus(), 500),
    "gpt2": lambda: trained(models.BPE(), split(GPT2)),
    "cl100k": lambda: trained(models.BPE(), split(CL100K)),
    "prefix space": lambda: trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "prefix space, never split": lambda: trained(
        models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    ),
    "lines": lambda: trained(models.BPE(), split(r"[^\n]*\n")),
    "sentences": lambda: trained(models.BPE(), split(r"[^.]+\.?")),
    "quotes": lambda: trained(models.BPE(), split(r"'[^']*'|[^']")),
    "digits": lambda: trained(models.BPE(), pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTE_LEVEL])),
    "llama": lambda: llama(METASPACE("▁", prepend_scheme="never")),
    "llama, tokens of several words": lambda: llama(METASPACE("▁", prepend_scheme="never", split=False)),
    "metaspace bpe": lambda: trained(models.BPE(unk_token="?"), METASPACE(prepend_scheme="first")),
    "metaspace bpe, never split": lambda: trained(models.BPE(unk_token="?"), METASPACE(split=False)),
    "unigram": lambda: trained(models.Unigram(), METASPACE(), normalizers.Replace(Regex(" {2,}"), " ")),
    "unigram, stripped": lambda: trained(models.Unigram(), METASPACE(), normalizers.Strip()),
    "unigram, never split": lambda: trained(models.Unigram(), None),
    "wordpiece": lambda: trained(
        models.WordPiece(unk_token="?"), pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
    ),
    "wordpiece, never split": lambda: trained(models.WordPiece(unk_token="?"), None),
    "words": lambda: trained(models.WordLevel(unk_token="?"), pre_tokenizers.Whitespace(), normalizers.NFKC()),
    "words, never split": lambda: trained(models.WordLevel(unk_token="?"), None),
}
KINDS |= {
    f"{name}, {kind}": lambda make=KINDS[name], added=added: with_added(make(), added)  # type: ignore[misc]
    for name in ("gpt2", "prefix space", "llama", "metaspace bpe", "unigram", "wordpiece")
    for kind, added in (("added tokens", ADDED), ("added tokens across words", ACROSS))
}
_made: dict[str, TextTokenizer] = {}


def made(kind: str) -> TextTokenizer:
    if kind not in _made:
        _made[kind] = KINDS[kind]()
    return _made[kind]


@settings(max_examples=40)
@pytest.mark.parametrize("kind", KINDS)
@given(text=short | long, size=st.integers(1, 20))
@example(text="a_\na", size=2)
@example(text="a b " * 200, size=1)
def test_pieces_give_the_ids_of_the_whole(kind: str, text: str, size: int) -> None:
    tokenizer = made(kind)
    cut = list(tokenizer.pieces(text, size))
    assert "".join(piece.text for piece in cut) == text
    assert all(len(piece.text) >= size for piece in cut[:-1])
    assert [token for ids in tokenizer.encode_batch([piece.encoded for piece in cut]) for token in ids] == (
        tokenizer.encode(text)
    )


@pytest.mark.parametrize(
    "kind", ["bytes", "bpe", "gpt2", "cl100k", "prefix space", "llama", "metaspace bpe", "unigram"]
)
def test_a_long_line_is_cut(kind: str) -> None:
    cut = list(made(kind).pieces("a ab b " * 10_000, 7000))
    assert len(cut) == 10
    assert max(len(piece.text) for piece in cut) < 7010


def test_text_without_words_is_cut_where_a_byte_is_a_token() -> None:
    text = "é" * 1000
    cut = list(TextTokenizer.for_bytes().pieces(text, 100))
    assert [len(piece.text) for piece in cut] == [100] * 10


@pytest.mark.parametrize("kind", ["bpe", "prefix space", "llama", "llama, tokens of several words", "unigram"])
def test_a_text_of_a_megabyte(kind: str) -> None:
    tokenizer = made(kind)
    text = "a ab b ab.\n" * 100_000
    assert tokenizer.encode_text(text) == tokenizer.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_has_no_tokens(kind: str) -> None:
    assert made(kind).encode_text("") == made(kind).encode("")


@given(text=short | long, size=st.integers(1, 20))
def test_parts_for_training_are_cut_between_words(text: str, size: int) -> None:
    parts = list(words_apart(text, size))
    assert "".join(parts) == text
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert [word for part in parts for word, _ in byte_level.pre_tokenize_str(part)] == [
        word for word, _ in byte_level.pre_tokenize_str(text)
    ]


def test_a_llama_of_ours_comes_back() -> None:
    inner = Tokenizer.from_str(made("llama").to_json())
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = TextTokenizer(inner, END)
    text = " ab  b\nab " * 60_000
    assert tokenizer.decode(tokenizer.encode_text(text)) == text
