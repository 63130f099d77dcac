"""What streams joins to what decoding all ids gives, for every kind of decoder and any ids."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from mixerzoo.data import TextTokenizer
from mixerzoo.data.streaming import byte_names
from mixerzoo.errors import DataError

END = "</s>"

# Tokens of every kind at once, so that each decoder meets what it changes and what it must leave alone.
TOKENS = [
    *(f"<0x{value:02X}>" for value in (0x61, 0x20, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xEF, 0xBF, 0xBD, 0xFF)),
    *(byte_names()[value] for value in (0x61, 0x20, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xEF, 0xBF, 0xBD, 0xFF)),
    *("the", "▁the", "▁", "▁▁", "a▁b", "Ġthe", "##ing", "##", "do", " not", "n", ".", " .", "'s", " '", ",", "|", "||"),
    *(
        "the</w>",
        "</w>",
        "a</w>b</w>",
        "<pad>",
        "x",
        "xx",
        " ",
        "  ",
        "é",
        "🤷",
        "\ufffd",
        "<0xZZ>",
        "<0x4>",
        "\n",
        "aab",
    ),
]

STAGES = [
    decoders.ByteLevel(),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.WordPiece(),
    decoders.WordPiece(prefix="", cleanup=False),
    decoders.Metaspace(),
    decoders.Metaspace(prepend_scheme="never"),
    decoders.Metaspace(replacement="x"),
    decoders.BPEDecoder(),
    decoders.BPEDecoder(suffix="x"),
    decoders.CTC(),
    decoders.CTC(pad_token="x", cleanup=False),
    decoders.Replace("▁", " "),
    decoders.Replace("aab", "x"),
    decoders.Replace("the", ""),
    decoders.Strip(" ", 1, 0),
    decoders.Strip(" ", 2, 0),
    decoders.Strip("x", 0, 1),
    decoders.Strip(" ", 1, 2),
]

LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


def tokenizer_of(decoder: decoders.Decoder | None) -> TextTokenizer:
    """A tokenizer whose ids have gaps, with special tokens and others that were added."""
    vocabulary = {token: 3 * number for number, token in enumerate(dict.fromkeys(TOKENS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="the"))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([END, "<s>"])
    tokenizer.add_tokens([AddedToken("new▁one", lstrip=True, rstrip=True), AddedToken("Ġ é", single_word=True)])
    return TextTokenizer(tokenizer, END)


def ids_of(tokenizer: TextTokenizer) -> st.SearchStrategy[list[int]]:
    known = st.integers(0, tokenizer.vocab_size - 1)
    return st.lists(known | st.sampled_from([-1, 0x110000, 2**31, 2**32, 2**70]), max_size=12)


decoders_of_any_kind = st.one_of(
    st.none(),
    st.sampled_from([*STAGES, decoders.Sequence(LLAMA), decoders.Sequence(LLAMA[:3])]),
    st.lists(st.sampled_from(STAGES), max_size=4).map(decoders.Sequence),
    st.lists(st.sampled_from(STAGES), max_size=2).map(lambda stages: decoders.Sequence([decoders.Fuse(), *stages])),
)


@settings(max_examples=400)
@given(data=st.data(), decoder=decoders_of_any_kind, skip=st.booleans())
def test_the_parts_join_to_the_whole(data: st.DataObject, decoder: decoders.Decoder | None, skip: bool) -> None:
    tokenizer = tokenizer_of(decoder)
    prompt, ids = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer))
    try:
        printed = tokenizer.decode(prompt, skip_special_tokens=skip)
        whole = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
    except DataError:  # the library panics where it strips from both ends of the same characters
        whole = None
        prompt = []
    stream = tokenizer.stream(prompt, skip_special_tokens=skip)
    got = "".join([stream.step(token) for token in ids]) + stream.finish()
    if whole is None:
        return
    shared = next((i for i, pair in enumerate(zip(printed, whole, strict=False)) if len(set(pair)) > 1), None)
    assert got == whole[min(len(printed), len(whole)) if shared is None else shared :]
    if not prompt:
        assert got == whole
        assert "".join([stream.step(token) for token in ids]) + stream.finish() == whole


@given(st.lists(st.sampled_from([0x61, 0xC3, 0xA9, 0xFF, 0xF0, 0x9F, 0x98, 0x80]), max_size=20))
@example([0xF0, 0x9F, 0x98])
def test_bytes_are_given_as_soon_as_they_are_a_character(values: list[int]) -> None:
    stream = TextTokenizer.for_bytes().stream()
    seen = ""
    for number, value in enumerate(values, start=1):
        seen += stream.step(value)
        # At most the beginning of one character is held back.
        assert len(bytes(values[:number]).decode(errors="replace")) - len(seen) <= 1
    assert seen + stream.finish() == bytes(values).decode(errors="replace")


def test_a_llama_keeps_the_space_after_its_prompt() -> None:
    tokenizer = tokenizer_of(decoders.Sequence(LLAMA))
    the = tokenizer.encode("▁the")
    assert tokenizer.decode(the) == "the"
    assert tokenizer.stream().step(*the) == "the"
    assert tokenizer.stream(the).step(*the) == " the"


def test_a_finished_stream_begins_anew() -> None:
    stream = TextTokenizer.for_bytes().stream(b"a\xc3")
    assert [stream.step(0xA9), stream.step(0xC3), stream.finish(), stream.step(0x61), stream.finish()] == [
        "é",
        "",
        "\ufffd",
        "a",
        "",
    ]
