"""Tokenizers: every text comes back, and no text makes a special token."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mixerzoo.data import TextTokenizer
from mixerzoo.data.stdlib import stdlib_documents
from mixerzoo.data.tokenizer_files import END_OF_TEXT
from mixerzoo.errors import DataError

BYTES = TextTokenizer.for_bytes()
BPE = TextTokenizer.train_bpe(stdlib_documents(100_000), 400)
OWN = [BYTES, BPE]

texts = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(
            [
                END_OF_TEXT,
                "  ",
                "\n\n",
                "\r\n",
                "'s",
                "é",
                "e\u0301",
                "👩‍👩‍👧",
                "\x00",
                "\u2028",
                "_\n",
                "9\n",
            ]
        ),
    )
).map("".join)


@pytest.mark.parametrize("tokenizer", OWN)
@given(text=texts)
def test_every_text_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text_id not in ids
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]


@given(texts)
def test_bytes_ids_are_the_bytes(text: str) -> None:
    assert BYTES.encode(text) == list(text.encode())


@pytest.mark.parametrize("tokenizer", OWN)
@given(data=st.data())
def test_streaming_decode_is_decode(tokenizer: TextTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)) | texts.map(tokenizer.encode))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special_tokens=skip)
    parts = [stream.step(token) for token in ids]
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids, skip_special_tokens=skip)


def test_stream_holds_back_half_a_character() -> None:
    stream = BYTES.stream()
    assert [stream.step(byte) for byte in "aé".encode()] == ["a", "", "é"]
    assert stream.finish() == ""
    assert [stream.step("é".encode()[0]), stream.finish(), stream.finish()] == ["", "\ufffd", ""]


def test_end_of_text() -> None:
    assert (BYTES.end_of_text_id, BYTES.vocab_size) == (256, 257)
    for tokenizer in OWN:
        end = tokenizer.end_of_text_id
        assert tokenizer.decode([end]) == ""
        assert tokenizer.decode([end], skip_special_tokens=False) == END_OF_TEXT


def test_bpe_is_deterministic_and_keeps_to_its_size() -> None:
    again = TextTokenizer.train_bpe(stdlib_documents(100_000), 400)
    assert again.to_json() == BPE.to_json()
    assert BPE.vocab_size == 400
    assert TextTokenizer.train_bpe(["aaaa " * 9], 5000).vocab_size < 300
    assert TextTokenizer.train_bpe(["aaaa " * 9], 257).encode("aa") == [*map(BPE.encode("a").__getitem__, [0, 0])]
    with pytest.raises(DataError, match="at least 257, got 256"):
        TextTokenizer.train_bpe(["a"], 256)


def test_errors_of_the_text_reach_the_caller() -> None:
    def broken() -> Any:
        yield "a"
        raise DataError("the text ends here")

    with pytest.raises(DataError, match="the text ends here"):
        TextTokenizer.train_bpe(broken(), 300)


@pytest.mark.parametrize("tokenizer", OWN)
def test_save_and_load(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    tokenizer.save(folder)
    text = f" def f(x):\n\treturn{END_OF_TEXT} é"
    for loaded in (
        TextTokenizer.load(folder),
        TextTokenizer.pretrained(str(folder)),
        TextTokenizer.pretrained(str(folder / "tokenizer.json")),
    ):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.end_of_text_id == tokenizer.end_of_text_id
        assert loaded.to_json() == tokenizer.to_json()


@pytest.mark.parametrize("tokenizer", OWN)
def test_transformers_loads_what_was_saved(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token_id == tokenizer.end_of_text_id
    text = " Some text , with 's and é\n"
    ids = loaded(text)["input_ids"]
    assert ids == tokenizer.encode(text)
    assert loaded.decode(ids) == text


class TestPretrained:
    """Other people's tokenizer.json."""

    @staticmethod
    def word_level(path: Path, special: list[str], **extras: Any) -> Tokenizer:
        words = {"[UNK]": 0, "a": 1, "b": 2, "high": 70_000}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.add_special_tokens(special)
        if extras.get("truncate"):
            tokenizer.enable_truncation(2)
            tokenizer.enable_padding(length=8)
        path.mkdir(exist_ok=True)
        tokenizer.save(str(path / "tokenizer.json"))
        return tokenizer

    def test_usual_names(self, tmp_path: Path) -> None:
        self.word_level(tmp_path, ["<pad>", "</s>"])
        tokenizer = TextTokenizer.pretrained(str(tmp_path))
        assert tokenizer.end_of_text == "</s>"
        assert tokenizer.vocab_size == 70_001

    @pytest.mark.parametrize("declared", ["<pad>", {"content": "<pad>", "lstrip": False}])
    def test_the_declared_token_comes_first(self, tmp_path: Path, declared: object) -> None:
        self.word_level(tmp_path, ["<pad>", "</s>"])
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": declared}))
        for path in (str(tmp_path), str(tmp_path / "tokenizer.json")):
            assert TextTokenizer.pretrained(path).end_of_text == "<pad>"
            assert TextTokenizer.pretrained(path, "</s>").end_of_text == "</s>"

    def test_no_usual_name(self, tmp_path: Path) -> None:
        self.word_level(tmp_path, ["<pad>"])
        with pytest.raises(DataError, match=r"eos_token .* with end_of_text \(its special tokens: '<pad>'\)"):
            TextTokenizer.pretrained(str(tmp_path))

    def test_a_name_it_does_not_have(self, tmp_path: Path) -> None:
        self.word_level(tmp_path, ["<pad>", "</s>"])
        with pytest.raises(DataError, match=r"no end-of-text token '<s>' \(did you mean '</s>'\?\)"):
            TextTokenizer.pretrained(str(tmp_path), "<s>")

    def test_truncation_and_padding_are_switched_off(self, tmp_path: Path) -> None:
        self.word_level(tmp_path, ["</s>"], truncate=True)
        tokenizer = TextTokenizer.pretrained(str(tmp_path))
        assert tokenizer.encode("a b a b a") == [1, 2, 1, 2, 1]
        assert tokenizer.encode_batch(["a", "a b a"]) == [[1], [1, 2, 1]]

    @pytest.mark.parametrize("name", ["missing.json", "./missing", "/nowhere/missing"])
    def test_missing(self, name: str) -> None:
        with pytest.raises(DataError, match=f"no such tokenizer: {name}"):
            TextTokenizer.pretrained(name)

    def test_directory_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no tokenizer at .*tokenizer\.json"):
            TextTokenizer.pretrained(str(tmp_path))

    @pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b"[1]"])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(DataError, match=r"tokenizer .*tokenizer\.json"):
            TextTokenizer.load(tmp_path)

    def test_odd_paths(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "tokenizer.json")
        for path in (str(tmp_path), str(tmp_path / "tokenizer.json"), "~nosuchuser0/a", "/dev/null"):
            with pytest.raises(DataError):
                TextTokenizer.pretrained(path)

    def test_another_format_alone(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
        with pytest.raises(DataError, match=r"no tokenizer at .*: there is only tokenizer\.model, .*save_pretrained"):
            TextTokenizer.load(tmp_path)

    def test_folders_of_it_that_have_one_are_named(self, tmp_path: Path) -> None:
        BPE.save(tmp_path / "b")
        with pytest.raises(DataError, match=r"no tokenizer at .*tokenizer\.json; there is one in .*b$"):
            TextTokenizer.load(tmp_path)

    def test_dropout_of_merges_is_switched_off(self, tmp_path: Path) -> None:
        BPE.save(tmp_path)
        data = json.loads((tmp_path / "tokenizer.json").read_text())
        data["model"]["dropout"] = 0.9
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        assert TextTokenizer.load(tmp_path).encode("the same words") == BPE.encode("the same words")

    def test_what_has_no_token(self, tmp_path: Path) -> None:
        Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
        tokenizer = TextTokenizer.load(tmp_path)
        for encode in (tokenizer.encode, tokenizer.encode_text, lambda text: tokenizer.encode_batch([text])):
            with pytest.raises(DataError, match=r"cannot encode this text: .*UNK"):
                encode("b")
            with pytest.raises(DataError, match="the text has half of a surrogate pair at character 1"):
                encode("a\ud800")

    @pytest.mark.parametrize("content", ["[" * 100_000, "\xff", "NaN", '{"eos_token": [1]}'])
    def test_odd_configs(self, tmp_path: Path, content: str) -> None:
        BYTES.save(tmp_path)
        (tmp_path / "tokenizer_config.json").write_bytes(content.encode("latin-1"))
        if not content.startswith("{"):
            with pytest.raises(DataError, match=r"tokenizer_config\.json: damaged"):
                TextTokenizer.load(tmp_path)
        else:
            assert TextTokenizer.load(tmp_path).end_of_text == END_OF_TEXT

    def test_damaged_config(self, tmp_path: Path) -> None:
        BYTES.save(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{")
        with pytest.raises(DataError, match=r"tokenizer_config\.json: damaged"):
            TextTokenizer.load(tmp_path)

    def test_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        BYTES.save(tmp_path)

        def download(repo_id: str, **options: Any) -> str:
            if repo_id != "owner/name":
                raise OSError("no such repository")
            return str(tmp_path / "tokenizer.json")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        assert TextTokenizer.pretrained("owner/name").encode("ab") == [97, 98]
        with pytest.raises(DataError, match=r"tokenizer 'owner/other': no such file, .* no such repository"):
            TextTokenizer.pretrained("owner/other")
