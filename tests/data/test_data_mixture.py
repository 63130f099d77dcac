"""Several sources with weights, and limits on documents and tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import documents_of
from mixerzoo.data import BpeTokenizer, DataConfig, encoding, prepare, text_record
from mixerzoo.data.encoding import Encoded
from mixerzoo.data.mixture import _SLACK, Mixture
from mixerzoo.data.pieces import Piece
from mixerzoo.data.sealed import read_sealed_json, to_sealed_json
from mixerzoo.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")


def save(path: Path, documents: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def config(*sources: tuple[str, float], **changes: object) -> DataConfig:
    weighted = [{"source": {"name": "text", "paths": [path]}, "weight": weight} for path, weight in sources]
    given = {"source": weighted[0]["source"]} if len(weighted) == 1 else {"sources": weighted}
    plain = {"tokenizer": {"name": "bytes"}, "sequence_length": 8, "validation_fraction": 0.1}
    return DataConfig.model_validate(given | plain | changes)


@pytest.fixture
def letters(tmp_path: Path) -> tuple[str, str]:
    """Short documents of a's, and long ones of b's."""
    short = save(tmp_path / "a.jsonl", [f"{number} " + "a" * (number % 90 + 1) for number in range(4000)])
    long = save(tmp_path / "b.jsonl", [f"{number} " + "b" * (number % 900 + 1) for number in range(900)])
    return short, long


@pytest.fixture
def few(tmp_path: Path) -> str:
    """Short documents of a's, and not many."""
    return save(tmp_path / "few.jsonl", [f"{number} " + "a" * (number % 90 + 1) for number in range(200)])


class TestMixture:
    def test_shares_are_the_weights_by_tokens(self, letters: tuple[str, str]) -> None:
        asked = config((letters[0], 0.3), (letters[1], 0.7), max_tokens=400_000)
        prepared = prepare(asked)
        record = text_record(asked, prepared)
        assert [source["share"] for source in record["sources"]] == pytest.approx([0.3, 0.7], abs=_SLACK / 400_000)
        assert sum(source["tokens"] for source in record["sources"]) == record["train_tokens"] == 400_000
        documents = documents_of(prepared)
        of_b = [text for text in documents if "b" in text]
        counted = sum(len(text) + 1 for text in documents if "a" in text)
        assert counted == pytest.approx(record["sources"][0]["tokens"], rel=0.02)
        assert sum(source["documents"] for source in record["sources"]) == len(documents)
        # Each source's documents come in its order, and those of both in turn.
        assert [int(text.split()[0]) for text in of_b] == sorted(int(text.split()[0]) for text in of_b)
        assert len({"b" in text for text in documents[:200]}) == 2

    def test_the_draw_is_a_function_of_the_seed(self, letters: tuple[str, str], tmp_path: Path) -> None:
        def tokens(seed: int, **changes: object) -> list[int]:
            asked = config((letters[0], 0.5), (letters[1], 0.5), sources_seed=seed, max_tokens=50_000, **changes)
            return np.asarray(prepare(asked, cache_dir=tmp_path / f"cache{len(changes)}").train.tokens).tolist()

        assert tokens(1) == tokens(1, workers=2)
        assert tokens(1) != tokens(2)

    def test_small_batches_change_nothing(
        self, letters: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = config((letters[0], 0.5), (letters[1], 0.5), max_tokens=50_000)
        whole = prepare(asked)
        monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 100)
        pieced = prepare(asked, cache_dir=tmp_path / "other")
        for file in whole.directory.iterdir():
            assert file.read_bytes() == (pieced.directory / file.name).read_bytes()

    @pytest.mark.parametrize("told", [True, False])
    def test_what_one_source_holds_out_no_other_trains_on(self, few: str, letters: tuple[str, str], told: bool) -> None:
        """Whether a source is told what to hold out, or holds out a share of so few that the other's rule differs."""
        first: dict[str, object] = {"name": "text", "paths": [few]}
        if told:
            first["validation_paths"] = [letters[1]]
        second = {"name": "text", "paths": [few, letters[1]]}
        sources = [{"source": source, "weight": 0.5} for source in (first, second)]
        tokenizer = {"name": "bpe", "vocab_size": 260}
        asked = DataConfig.model_validate({"sources": sources, "tokenizer": tokenizer, "sequence_length": 8})
        prepared = prepare(asked)
        train, validation = (set(documents_of(prepared, side)) for side in ("train", "validation"))
        assert train
        assert validation
        assert not train & validation

    @pytest.mark.parametrize("sizes", [(0, 40_000), (1000, 500), (0, 0)])
    def test_no_source_trains_on_the_end_that_another_one_cuts_off(
        self, sizes: tuple[int, int], tmp_path: Path
    ) -> None:
        """The same long document in both: cut in one alone, at two places, and in both at one."""
        long = "".join(f"line {number} of a long document\n" for number in range(500))
        paths = []
        for name, size in zip("ab", sizes, strict=True):
            others = [f"{name} {number} " + "x" * 100 for number in range(size // 100)]
            paths.append(save(tmp_path / f"{name}.jsonl", [long, *others]))
        prepared = prepare(config((paths[0], 0.5), (paths[1], 0.5)))
        train, validation = (
            {line for text in documents_of(prepared, side) for line in text.split("\n") if line.startswith("line")}
            for side in ("train", "validation")
        )
        assert validation
        assert not train & validation
        assert bool(train) == (sizes != (1000, 500))

    def test_no_source_trains_on_the_beginning_of_what_another_one_holds_out(self, few: str, tmp_path: Path) -> None:
        long = "".join(f"line {number} of a long document\n" for number in range(500))
        told = {"name": "text", "paths": [few], "validation_paths": [save(tmp_path / "long.jsonl", [long])]}
        cut = {"name": "text", "paths": [save(tmp_path / "cut.jsonl", [long, *map(str, range(40))])]}
        sources = [{"source": source, "weight": 0.5} for source in (told, cut)]
        asked = {"sources": sources, "tokenizer": {"name": "bytes"}, "sequence_length": 8}
        prepared = prepare(DataConfig.model_validate(asked))
        assert long in documents_of(prepared, "validation")
        assert not any("line" in text for text in documents_of(prepared))

    def test_without_a_limit_it_ends_with_the_first_source_that_does(self, letters: tuple[str, str]) -> None:
        prepared = prepare(config((letters[0], 0.5), (letters[1], 0.5)))
        train, validation = prepared.notices
        assert train.startswith("the training text ends with data.sources.0, which has no document left: ")
        assert validation.startswith("the validation text ends with data.sources.0, which has no held-out document")
        assert prepared.mixture is not None
        assert prepared.mixture.ended == 0
        assert prepared.mixture.sources[0].num_documents == sum("b" not in text for text in documents_of(prepared))

    def test_a_source_that_ends_before_the_limit(self, letters: tuple[str, str]) -> None:
        message = (
            r"data\.sources\.0 \(source 'text' \(.*a\.jsonl\)\) has no document left after 1\d\d,\d{3} tokens, when "
            r"the training text had \d+,\d+ of the 900,000 of data\.max_tokens: lower that to \d+, lower its weight "
            r"of 0\.5, or give it more text"
        )
        with pytest.raises(DataError, match=message) as found:
            prepare(config((letters[0], 0.5), (letters[1], 0.5), max_tokens=900_000))
        enough = int(str(found.value).partition("lower that to ")[2].partition(",")[0])
        prepared = prepare(config((letters[0], 0.5), (letters[1], 0.5), max_tokens=enough))
        assert len(prepared.train.tokens) == enough

    def test_what_is_held_out_is_in_proportion_and_the_same_at_any_limit(self, letters: tuple[str, str]) -> None:
        sources = (letters[0], 0.25), (letters[1], 0.75)
        few = prepare(config(*sources, max_documents=100))
        more = prepare(config(*sources, max_documents=300))
        assert (few.train.num_documents, more.train.num_documents) == (100, 300)
        assert documents_of(more)[:100] == documents_of(few)
        held_out = documents_of(few, "validation")
        assert held_out == documents_of(more, "validation")
        assert not set(held_out) & set(documents_of(more))
        of_b = sum(len(text) for text in held_out if "b" in text)
        assert of_b / sum(map(len, held_out)) == pytest.approx(0.75, abs=0.25)

    def test_the_validation_text_ends_with_the_first_source_that_holds_out_no_more(
        self, few: str, letters: tuple[str, str]
    ) -> None:
        asked = config((few, 0.5), (letters[1], 0.5), max_documents=20)
        prepared = prepare(asked)
        held_out = documents_of(prepared, "validation")
        of_b = sum("b" in text for text in held_out)
        assert prepared.notices == (
            "the validation text ends with data.sources.0, which has no held-out document left: "
            f"{len(prepared.validation.tokens):,} tokens in {len(held_out)} documents",
        )
        sources = text_record(asked, prepared)["sources"]
        assert [each["validation_documents"] for each in sources] == [len(held_out) - of_b, of_b]
        assert sum(each["validation_tokens"] for each in sources) == len(prepared.validation.tokens)

    def test_text_of_an_earlier_version_says_nothing_of_it(self, letters: tuple[str, str]) -> None:
        asked = config((letters[0], 0.5), (letters[1], 0.5), max_documents=20)
        meta = prepare(asked).directory / "meta.json"
        written = {key: value for key, value in read_sealed_json(meta).items() if key != "validation_mixture"}
        meta.write_text(to_sealed_json(written))
        prepared = prepare(asked)
        assert (prepared.validation_mixture, prepared.notices) == (None, ())
        assert "validation_tokens" not in text_record(asked, prepared)["sources"][0]

    def test_bpe_learns_from_all_sources(self, letters: tuple[str, str]) -> None:
        prepared = prepare(config((letters[0], 0.5), (letters[1], 0.5), tokenizer=BpeTokenizer(vocab_size=300)))
        assert [len(prepared.tokenizer.encode(text)) for text in ("aaaa", "bbbb")] == [1, 1]

    @given(
        st.lists(st.lists(st.integers(0, 500), min_size=50, max_size=80), min_size=1, max_size=4),
        st.integers(0, 99),
        st.data(),
    )
    def test_no_source_is_ahead_by_more_than_the_slack(
        self, lengths: list[list[int]], seed: int, data: st.DataObject
    ) -> None:
        numbers = [data.draw(st.integers(1, 9)) for _ in lengths]
        weights = [number / sum(numbers) for number in numbers]

        def stream(source: int) -> Iterator[Encoded[int]]:
            for length in lengths[source] * 5:
                yield Encoded(source, Piece("", ""), memoryview(b""), length, True)

        mixture = Mixture([stream(source) for source in range(len(lengths))], weights, seed)
        for _ in mixture:
            total = sum(mixture.taken)
            for weight, taken in zip(weights, mixture.taken, strict=True):
                assert taken <= weight * (total + _SLACK) + 501
        assert mixture.ended is not None
        assert next(mixture._streams[mixture.ended], None) is None


class TestLimits:
    def test_documents(self, few: str) -> None:
        whole, some = prepare(config((few, 1))), prepare(config((few, 1), max_documents=7))
        assert documents_of(some) == documents_of(whole)[:7]
        assert some.fingerprint != whole.fingerprint
        assert documents_of(some, "validation") == documents_of(whole, "validation")
        assert some.train.num_bytes == sum(map(len, documents_of(some)))

    @pytest.mark.parametrize("tokenizer", [{"name": "bytes"}, {"name": "bpe", "vocab_size": 300}])
    @pytest.mark.parametrize("limit", [20, 21, 22, 601])
    def test_tokens(self, few: str, tokenizer: dict[str, object], limit: int) -> None:
        whole = prepare(config((few, 1), tokenizer=tokenizer))
        some = prepare(config((few, 1), tokenizer=tokenizer, max_tokens=limit))
        assert limit - 5 <= len(some.train.tokens) <= limit
        *first, last = documents_of(some)
        assert first == documents_of(whole)[: len(first)]
        assert documents_of(whole)[len(first)].startswith(last)
        assert last
        assert some.train.num_bytes == sum(len(text) for text in (*first, last))
        assert some.notices == ()
        counts = np.load(some.directory / "bigrams.npy")[0]
        assert counts.sum() == some.train.num_bytes + some.train.num_documents

    def test_one_long_document_is_cut_within(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mixerzoo.data.tokenizer.TextTokenizer.pieces.__defaults__", (50,))
        path = tmp_path / "one.txt"
        path.write_text("".join(f"line {number} of a text\n" for number in range(500)))
        for limit in (49, 50, 51, 52, 99, 100, 101, 1000):
            prepared = prepare(config((str(path), 1), max_tokens=limit))
            (text,) = documents_of(prepared)
            assert path.read_text().startswith(text)
            assert len(text) == limit - 1

    def test_a_limit_that_the_text_does_not_reach(self, few: str) -> None:
        (notice,) = prepare(config((few, 1), max_tokens=10**9)).notices
        assert notice.endswith("and data.max_tokens allows 1,000,000,000")
        (notice,) = prepare(config((few, 1), max_documents=10**9)).notices
        assert notice.endswith("and data.max_documents allows 1,000,000,000")

    def test_a_limit_below_one_sequence(self, few: str) -> None:
        with pytest.raises(DataError, match=r"the training text has 0 tokens.*set the limit higher or shorten it"):
            prepare(config((few, 1), max_tokens=1))

    def test_what_is_recorded(self, few: str) -> None:
        asked = config((few, 1), max_tokens=500)
        prepared = prepare(asked)
        documents = prepared.train.num_documents
        assert text_record(asked, prepared) == {
            "train_tokens": 500,
            "train_documents": documents,
            "max_tokens": 500,
        }
        assert text_record(config((few, 1)), prepare(config((few, 1)))) == {}
