"""Windows of tokens, and tokens in a file."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpora import config
from mixerzoo.data import TokenWindows, prepare
from mixerzoo.data.tokens import TokenFile

pytestmark = pytest.mark.usefixtures("cache")


class TestTokenWindows:
    @given(st.integers(0, 40), st.integers(1, 12))
    def test_items(self, num_tokens: int, length: int) -> None:
        tokens = np.arange(num_tokens, dtype=np.uint16)
        windows = TokenWindows(tokens, length)
        assert len(windows) == max(0, (num_tokens - 1) // length)
        for i in range(len(windows)):
            item = windows[i]
            assert item["input_ids"].tolist() == list(range(i * length, i * length + length))
            assert item["labels"].tolist() == list(range(i * length + 1, i * length + length + 1))
            assert item["input_ids"].dtype == item["labels"].dtype == torch.int64
        for outside in (-1, len(windows)):
            with pytest.raises(IndexError):
                windows[outside]

    def test_large_ids(self) -> None:
        windows = TokenWindows(np.array([65_535, 2**32 - 1], dtype=np.uint32), 1)
        assert (windows[0]["input_ids"].item(), windows[0]["labels"].item()) == (65_535, 2**32 - 1)

    def test_a_worker_gets_the_name_of_the_file(self, corpus: str) -> None:
        prepared = prepare(config(corpus))
        windows = TokenWindows(prepared.train.tokens, 8)
        data = pickle.dumps(windows)
        assert len(data) < prepared.train.tokens.nbytes
        copy = pickle.loads(data)
        assert len(copy) == len(windows)
        assert torch.equal(copy[3]["input_ids"], windows[3]["input_ids"])

    def test_a_part_of_the_tokens_is_pickled_as_it_is(self, corpus: str) -> None:
        part = prepare(config(corpus)).train.tokens[5:50]
        copy = pickle.loads(pickle.dumps(TokenWindows(part, 4)))
        assert copy[0]["input_ids"].tolist() == part[:4].tolist()

    @given(st.data())
    def test_ids_in_a_file_are_an_array(self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
        ids = np.array(data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=20)), dtype="<u4")
        path = tmp_path_factory.mktemp("ids") / "ids.bin"
        path.write_bytes(ids.tobytes())
        tokens = TokenFile(path, "<u4", len(ids))
        where = data.draw(st.slices(len(ids)))
        assert tokens[where].tolist() == ids[where].tolist()
        assert list(tokens) == ids.tolist()
        assert (tokens.shape, tokens.dtype, tokens.nbytes, len(tokens)) == (ids.shape, ids.dtype, ids.nbytes, len(ids))
        assert np.asarray(tokens, dtype=np.int64).tolist() == ids.tolist()
        for place in range(-len(ids), len(ids)):
            assert tokens[place] == ids[place]
        for outside in (len(ids), -len(ids) - 1):
            with pytest.raises(IndexError):
                tokens[outside]
