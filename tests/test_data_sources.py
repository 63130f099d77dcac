"""Documents out of the standard library and out of local files."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from mixerzoo.data import Corpus, StdlibSource, TextSource, read_documents
from mixerzoo.errors import DataError


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def read(paths: Sequence[str | Path], **options: object) -> list[str]:
    source = TextSource.model_validate({"paths": [str(path) for path in paths], **options})
    return list(read_documents(source).documents())


def stdlib(max_bytes: int | None = None) -> list[str]:
    return list(read_documents(StdlibSource(max_bytes=max_bytes)).documents())


class TestStdlib:
    def test_full_scan(self) -> None:
        documents = stdlib()
        root = Path(sysconfig.get_path("stdlib"))
        assert (root / "argparse.py").read_bytes().decode() in documents
        assert (root / "json" / "decoder.py").read_bytes().decode() in documents
        from pydoc_data.topics import topics

        assert documents[-len(topics) :] == [topics[name] for name in sorted(topics)]
        assert sum(map(len, documents)) > 5_000_000
        assert "" not in documents

    def test_left_out(self) -> None:
        documents = set(stdlib())
        root = Path(sysconfig.get_path("stdlib"))
        for name in ("pydoc_data/topics.py", "test/test_json/__init__.py", "idlelib/idle_test/htest.py"):
            path = root / name
            if path.exists():
                assert path.read_bytes().decode() not in documents

    def test_sample_is_bounded_and_repeatable(self) -> None:
        sample = stdlib(200_000)
        assert sample == stdlib(200_000)
        assert 150_000 < sum(len(text.encode()) for text in sample) <= 200_000
        order = {text: place for place, text in enumerate(stdlib())}
        places = [order[text] for text in sample]
        assert places == sorted(places)

    def test_sample_is_spread(self) -> None:
        quarters = [0, 0, 0, 0]
        sample = set(stdlib(3_000_000))
        documents = stdlib()
        for place, text in enumerate(documents):
            quarters[4 * place // len(documents)] += len(text) * (text in sample)
        # An even spread is 750 kB each; taken from the front, the first quarter alone would fill the sample.
        assert min(quarters) > 400_000

    def test_nothing_fits(self) -> None:
        with pytest.raises(DataError, match="max_bytes 3: raise it"):
            stdlib(3)

    def test_files_that_are_not_utf8(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "b.py", b"# \xe9\n")
        write(tmp_path / "a.py", "# a\n")
        write(tmp_path / "site-packages" / "c.py", "# c\n")
        write(tmp_path / "deep" / "tests" / "d.py", "# d\n")
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        monkeypatch.setattr("pydoc_data.topics.topics", {"z": "topic z", "y": "topic y"})
        assert stdlib() == ["# a\n", "topic y", "topic z"]

    def test_python_without_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(DataError, match="no Python source files in"):
            stdlib()


class TestFiles:
    def test_text_is_kept_as_it_is(self, tmp_path: Path) -> None:
        text = "\ufeff one\r\ntwo\rthree\n\x00é\u2028"
        assert read([write(tmp_path / "a.txt", text)]) == [text]

    def test_order_is_of_the_patterns_then_of_the_names(self, tmp_path: Path) -> None:
        for name in ("b/2.txt", "b/1.txt", "a/3.txt", "b/deep/0.txt", "c.md"):
            write(tmp_path / name, name)
        assert read([tmp_path / "b" / "*.txt", tmp_path / "c.md", tmp_path / "**" / "*.txt"]) == [
            "b/1.txt",
            "b/2.txt",
            "c.md",
            "a/3.txt",
            "b/deep/0.txt",
        ]

    def test_no_file_is_read_twice(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "a")
        (tmp_path / "link.txt").symlink_to(path)
        assert read([path, path, tmp_path / "*.txt", tmp_path / "." / "a.txt"]) == ["a"]

    def test_a_name_that_looks_like_a_pattern(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a[1].txt", "bracket")
        write(tmp_path / "a1.txt", "plain")
        assert read([path]) == ["bracket"]

    def test_empty_files_are_left_out(self, tmp_path: Path) -> None:
        assert read([write(tmp_path / "a.txt", ""), write(tmp_path / "b.txt", " ")]) == [" "]

    def test_the_home_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "a.txt", "home")
        assert read(["~/a.txt"]) == ["home"]

    def test_validation_paths(self, tmp_path: Path) -> None:
        train, held_out = write(tmp_path / "a.txt", "train"), write(tmp_path / "b.txt", "held out")
        corpus = read_documents(TextSource(paths=(train,), validation_paths=(held_out,)))
        assert corpus.validation is not None
        assert (list(corpus.documents()), list(corpus.validation())) == (["train"], ["held out"])

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("missing.txt", "no such file: .*missing.txt"),
            ("*.txt", r"no file matches .*\*.txt"),
            ("folder", r"folder is a directory: name its files, as in '.*folder/\*\*/\*.txt'"),
        ],
    )
    def test_paths_that_name_no_file(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(DataError, match=message):
            read([tmp_path / name])

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", b"caf\xe9 au lait")
        with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 3"):
            read([path])

    def test_a_file_that_disappears(self, tmp_path: Path) -> None:
        path = Path(write(tmp_path / "a.txt", "a"))
        corpus = read_documents(TextSource(paths=(str(path),)))
        path.unlink()
        with pytest.raises(DataError, match=r"cannot read .*a\.txt: No such file"):
            list(corpus.documents())

    def test_documents_can_be_read_again(self, tmp_path: Path) -> None:
        corpus = read_documents(TextSource(paths=(write(tmp_path / "a.txt", "a"),)))
        assert isinstance(corpus, Corpus)
        assert list(corpus.documents()) == list(corpus.documents()) == ["a"]


class TestJsonLines:
    def test_one_document_a_line(self, tmp_path: Path) -> None:
        texts = ["one\ntwo", "three\u2028four", "é🎉", "<|endoftext|>"]
        lines = [json.dumps({"id": 3, "text": text}, ensure_ascii=text < "b") for text in texts]
        path = write(tmp_path / "a.jsonl", "\r\n\n".join(lines) + '\n{"text": ""}\n  \n')
        assert read([path]) == texts

    def test_field(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a", "body": "b"}')
        assert read([path], field="body") == ["b"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "b"', "not JSON: "),
            ('["text"]', r"expected a JSON object with the key 'text', got \[\"text\"\]"),
            ('{"tetx": "b"}', r"no key 'text' \(did you mean 'tetx'\?\); its keys: 'tetx'"),
            ("{}", "no key 'text'; its keys: none"),
            ('{"text": 3}', "'text' is int, expected a string"),
            ('{"text": null}', "'text' is NoneType, expected a string"),
            ('{"text": "ab\\ud800"}', "'text' has half of a surrogate pair at character 2"),
        ],
    )
    def test_a_malformed_line_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{line}\n')
        with pytest.raises(DataError, match=rf"a\.jsonl:3: {message}"):
            read([path])

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')
        with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8 at byte 24"):
            read([path])
