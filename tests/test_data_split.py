"""Training and validation share no document, whatever the documents are."""

from __future__ import annotations

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
