"""Training and validation share no document, whatever the documents are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixerzoo.data import Corpus, split_documents
from mixerzoo.data.split import SplitCorpus
from mixerzoo.errors import DataError

texts = st.text(min_size=1, max_size=8)
fractions = st.floats(0.01, 0.5)


def silent(stage: str, done: int, total: int) -> None:
    pass


def split(documents: Sequence[str], fraction: float = 0.05, validation: Sequence[str] | None = None) -> SplitCorpus:
    corpus = Corpus(
        "the corpus",
        lambda: iter(documents),
        None if validation is None else lambda: iter(validation),
    )
    return split_documents(corpus, fraction, silent)


def sides(
    documents: Sequence[str], fraction: float = 0.05, validation: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    result = split(documents, fraction, validation)
    return list(result.side("train")), list(result.side("validation"))


@given(st.lists(texts, min_size=2).filter(lambda documents: len(set(documents)) > 1), fractions)
def test_several_documents(documents: list[str], fraction: float) -> None:
    train, validation = sides(documents, fraction)
    assert train
    assert validation
    assert not set(train) & set(validation)
    assert Counter(train + validation) == Counter(documents)
    assert [text for text in documents if text in set(train)] == train
    shuffled = sides(documents[::-1], fraction)
    assert shuffled == (train[::-1], validation[::-1])


@given(st.text(min_size=2), fractions, st.integers(1, 3))
def test_one_document_is_cut(document: str, fraction: float, copies: int) -> None:
    train, validation = sides([document] * copies, fraction)
    assert len(train) == len(validation) == copies
    assert train[0]
    assert validation[0]
    assert train[0] + validation[0] == document


def test_the_cut_is_at_a_line_near_the_end() -> None:
    document = "".join(f"line {number}\n" for number in range(1000))
    (train,), (validation,) = sides([document], 0.1)
    assert train.endswith("\n")
    assert len(validation) == pytest.approx(0.1 * len(document), abs=len("line 999\n"))


def test_a_far_line_break_does_not_decide_the_cut() -> None:
    (train,), _ = sides(["a\n" + "b" * 998], 0.1)
    assert len(train) == 900


def share(documents: Sequence[str], fraction: float) -> float:
    train, validation = (sum(len(text.encode()) for text in side) for side in sides(documents, fraction))
    assert train + validation == sum(len(text.encode()) for text in documents)
    return validation / (train + validation)


long_documents = st.builds(
    lambda words, count: "".join(f"{word} {number}\n" for number in range(count) for word in words),
    st.lists(st.text("aé語 ", min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(350, 3000),
)


@given(st.lists(long_documents, min_size=1, max_size=50), fractions)
def test_the_share_is_that_of_the_bytes(documents: list[str], fraction: float) -> None:
    assert share(documents, fraction) == pytest.approx(fraction, rel=0.2, abs=20 / sum(map(len, documents)))
    train, validation = sides(documents, fraction)
    assert sides(documents[::-1], fraction)[1][::-1] == validation
    # Only the end of one document is apart from it, and of each of its copies the same.
    apart = [text for text in validation if text not in documents]
    assert len(set(apart)) <= 1
    assert len(train) + len(validation) == len(documents) + len(apart)
    for tail in apart:
        assert any(head + tail in documents for head in train)


def test_one_long_document_among_short_ones() -> None:
    documents = [f"line {number}\n" * 300 for number in range(42)]
    for name in range(8):
        giant = f"{name}\n" * 500_000
        assert share([*documents, giant], 0.05) == pytest.approx(0.05, rel=0.2)


def test_one_long_line_stays_whole() -> None:
    for name in range(8):
        documents = [*(f"short {number}" for number in range(7)), f"{name} " * 100_000]
        train, validation = sides(documents, 0.05)
        assert sorted(train + validation) == sorted(documents)
        # The rest is too little, and the long line would be far too much.
        assert documents[-1] in train
        assert validation


def test_near_shares_are_those_of_the_hashes_alone() -> None:
    documents = [f"document {number} " * 100 for number in range(5000)]
    _, validation = sides(documents, 0.1)
    limit = int(0.1 * 2**256)
    assert validation == [
        text for text in documents if int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") <= limit
    ]


def test_whole_documents_are_what_a_part_of_the_source_holds_out_too() -> None:
    documents = [f"document {number}\n" * (number**2 * 50 + 1) for number in range(20)]

    def held_out(documents: Sequence[str]) -> set[str]:
        corpus = Corpus("the corpus", lambda: iter(documents), whole_documents=True)
        return set(split_documents(corpus, 0.2, silent).side("validation"))

    assert held_out(documents[:10]) <= held_out(documents) < set(documents)


def test_the_fraction_is_met() -> None:
    documents = [f"document {number}" for number in range(5000)]
    _, validation = sides(documents, 0.1)
    assert len(validation) == pytest.approx(500, rel=0.15)
    # A larger fraction adds documents and takes none away.
    assert set(validation) < set(sides(documents, 0.2)[1])


@given(st.lists(texts), st.lists(texts, min_size=1))
def test_explicit_validation(documents: list[str], held_out: list[str]) -> None:
    if not set(documents) - set(held_out):
        with pytest.raises(DataError, match="train"):
            sides(documents, validation=held_out)
        return
    train, validation = sides(documents, validation=held_out)
    assert validation == held_out
    assert train == [text for text in documents if text not in held_out]


@pytest.mark.parametrize(
    ("documents", "validation", "message"),
    [
        ([], None, "the corpus holds no text"),
        (["a"], None, "the only document is 'a': too little to divide"),
        (["a"], [], "the validation side holds no text"),
        ([], ["a"], "the training side holds no text"),
        (["a", "a"], ["a"], "all 2 training documents are validation documents too"),
    ],
)
def test_too_little(documents: list[str], validation: list[str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sides(documents, validation=validation)


def test_fingerprints_tell_sides_apart() -> None:
    prints = [
        split(["a", "b"], validation=["c"]),
        split(["b", "a"], validation=["c"]),
        split(["b"], validation=["c", "a"]),
        split(["a", "b"], validation=["a"]),
        split(["b"], validation=["a", "a"]),
        split(["a", "b", "c"]),
        split(["abc"]),
    ]
    assert len({result.fingerprint for result in prints}) == len(prints)
    assert split(["a", "b", "c"]).fingerprint == split(["a", "b", "c"]).fingerprint


def test_text_that_changes_between_passes() -> None:
    documents = ["a", "b", "c"]
    result = split(documents)
    documents[1] = "x"
    with pytest.raises(DataError, match="the corpus changed while it was being read"):
        list(result)


def test_progress_is_in_bytes() -> None:
    calls = []
    corpus = Corpus("the corpus", lambda: iter(["é" * 800_000, "b"]))
    result = split_documents(corpus, 0.5, lambda *call: calls.append(call))
    assert calls == [("read", 0, 0), ("read", 1_600_000, 0), ("read", 1_600_001, 1_600_001)]
    assert result.num_bytes == 1_600_001
