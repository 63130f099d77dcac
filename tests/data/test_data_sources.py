"""Documents out of the standard library and out of local files."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
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
        with pytest.raises(DataError, match=r"a\.txt:1: not UTF-8 at byte 3"):
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
            ('{"text": NaN}', "'text' is float, expected a string"),
            ("[" * 100_000, "JSON that is nested too deep"),
            ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "JSON that is nested too deep"),
            ("NaN", "expected a JSON object with the key 'text', got NaN"),
            ('{"text": "a\x00b"}', "not JSON: "),
            ('\ufeff{"text": "b"}', "not JSON: it begins with a byte-order mark"),
            ('{"text": "ab\\ud800"}', "'text' has half of a surrogate pair at character 2"),
        ],
    )
    def test_a_malformed_line_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{line}\n')
        with pytest.raises(DataError, match=rf"a\.jsonl:3: {message}"):
            read([path])

    def test_what_stands_beside_the_text_may_be_any_number(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", f'{{"n": {"9" * 5000}, "m": [NaN, 1e999, {"9" * 5000}.5], "text": "a"}}')
        assert read([path]) == ["a"]

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')
        with pytest.raises(DataError, match=r"a\.jsonl:2: not UTF-8 at byte 24"):
            read([path])


def zstandard(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)  # type: ignore[no-any-return]


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}


class TestPacked:
    @pytest.mark.parametrize("suffix", PACKERS)
    def test_they_are_read_as_what_is_in_them(self, tmp_path: Path, suffix: str) -> None:
        pack = PACKERS[suffix]
        lines = "".join(json.dumps({"text": f"line {number} " * 99}) + "\n" for number in range(3000))
        files = [
            write(tmp_path / f"a.txt{suffix}", pack(b"one\r\ntwo\n")),
            # Several streams one after the other are one file, as `cat` makes it.
            write(tmp_path / f"b.jsonl{suffix}", pack(lines[:1000].encode()) + pack(lines[1000:].encode())),
            write(tmp_path / f"c.txt{suffix}", pack(b"") + bytes(100)),
        ]
        assert read(files) == ["one\r\ntwo\n", *(f"line {number} " * 99 for number in range(3000))]

    @pytest.mark.parametrize("suffix", PACKERS)
    def test_what_is_cut_short_or_damaged(self, tmp_path: Path, suffix: str) -> None:
        data = PACKERS[suffix](os.urandom(1000).hex().encode())
        for broken in (data[:-9], data[: len(data) // 2], data[:7], b"no archive", data + b"more" * 9):
            path = write(tmp_path / f"a.txt{suffix}", broken)
            with pytest.raises(DataError, match=r"(cannot read .*|)a\.txt\.\w+( is damaged|): "):
                read([path])

    def test_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, package in (("a.txt.zst", "zstandard"), ("a.parquet", "pyarrow")):
            path = write(tmp_path / name, b"")
            monkeypatch.setitem(sys.modules, package, None)
            with pytest.raises(
                DataError, match=rf'{name}: reading it needs {package}, .*pip install "mixerzoo\[data\]"'
            ):
                read([path])

    @pytest.mark.parametrize("name", ["a.zip", "a.TAR", "a.tgz", "a.json", "a.csv", "a.json.gz", "a.arrow", "a.pdf"])
    def test_what_is_refused_by_name(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=rf"{name}: a \.\w+ file is "):
            read([write(tmp_path / name, "text")])


class TestParquet:
    @staticmethod
    def table(path: Path, **columns: list[object]) -> str:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
        return str(path)

    def test_one_document_a_row(self, tmp_path: Path) -> None:
        texts = [f"é {number}" for number in range(5000)]
        path = self.table(tmp_path / "a.parquet", id=list(range(5001)), text=[*texts, ""])
        assert read([path]) == texts
        assert read([self.table(tmp_path / "b.parquet", body=["x"])], field="body") == ["x"]

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no column 'text' \(did you mean 'texts'\?\); its columns: 'n', 'texts'"):
            read([self.table(tmp_path / "a.parquet", n=[1], texts=["a"])])
        with pytest.raises(DataError, match=r"a\.parquet, row 2: 'text' is NoneType"):
            read([self.table(tmp_path / "a.parquet", text=["a", None])])
        with pytest.raises(DataError, match=r"a\.parquet, row 1: 'text' is int"):
            read([self.table(tmp_path / "a.parquet", text=[1])])
        with pytest.raises(DataError, match=r"a\.parquet is damaged or no \.parquet file"):
            read([write(tmp_path / "a.parquet", b"PAR1 and no more")])
        with pytest.raises(DataError, match=r"a\.parquet\.gz: a \.parquet file is packed inside"):
            read([write(tmp_path / "a.parquet.gz", gzip.compress(b""))])


class TestPathsThatAreOdd:
    def test_no_such_user(self) -> None:
        with pytest.raises(DataError, match=r"~nosuchuser0/a\.txt: there is no home directory of that user"):
            read(["~nosuchuser0/a.txt"])

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.txt")
        with pytest.raises(DataError, match=r"pipe\.txt is a pipe, socket or device"):
            read([tmp_path / "pipe.txt"])
        write(tmp_path / "a.txt", "a")
        assert read([tmp_path / "*.txt"]) == ["a"]

    def test_links_in_a_loop(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
        (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
        (tmp_path / "up").symlink_to(tmp_path)
        with pytest.raises(DataError, match=r"a link to nothing or to itself: .*a\.txt"):
            read([tmp_path / "a.txt"])
        # With two of them, ever longer paths would be looked at for ever.
        (tmp_path / "again").symlink_to(tmp_path)
        write(tmp_path / "c.txt", "c")
        write(tmp_path / "deep" / "er" / "d.txt", "d")
        write(tmp_path / ".hidden" / "e.txt", "e")
        assert read([tmp_path / "**" / "*.txt"]) == ["c", "d"]
        assert read([tmp_path / "d*" / "**"]) == ["d"]
        assert read([tmp_path / "**" / "er" / "**" / "d.*"]) == ["d"]

    @pytest.mark.parametrize("name", ["a\0b", "a\0*", "a" * 5000, "*" + "a" * 5000, ""])
    def test_names_that_no_file_has(self, name: str) -> None:
        with pytest.raises(DataError):
            read([name])

    def test_a_folder_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "deep" / "a.txt", "a")
        real = os.scandir

        def refuse(path: str) -> object:
            if str(path).endswith("deep"):
                raise PermissionError(13, "Permission denied", path)
            return real(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(DataError, match=r"cannot look for .*: Permission denied \(.*deep\)"):
            read([tmp_path / "**" / "*.txt"])

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a.txt", "a")

        def refuse(*arguments: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(DataError, match=r"cannot read .*a\.txt: Permission denied"):
            read([path])
