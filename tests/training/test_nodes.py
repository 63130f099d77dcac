"""Several nodes: training begins when the last of them has prepared the text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch.distributed as dist

from mixerzoo.errors import RunError
from mixerzoo.training import nodes
from reporters import At

KEY = "prepared/0"


@pytest.fixture
def glances(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of a process whose run has another one on another node, which is ready at the third glance."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**variables, "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    store, found = dist.HashStore(), []

    def sleep(seconds: float) -> None:
        found.append(seconds)
        if len(found) == 3:
            store.add(KEY, 1)

    monkeypatch.setattr(nodes, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 60.0 * len(found)))
    monkeypatch.setattr(nodes, "meeting", lambda: store)
    monkeypatch.setattr(nodes, "_calls", iter(range(9)))
    return found


def test_the_first_node_waits_for_the_last(glances: list[float]) -> None:
    hears = At()
    with nodes.waiting_for_nodes(hears):
        assert not glances
    assert len(glances) == 3
    (notice,) = hears.notices
    assert notice.startswith(
        "waiting for 1 of 2 processes, on other nodes, which still prepare the text; with MIXERZOO"
    )


def test_a_node_that_never_comes(glances: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_PATIENCE", 100.0)
    with (
        pytest.raises(RunError, match=r"1 of 2 processes, .* have not prepared the text 0 hours .* MIXERZOO_CACHE"),
        nodes.waiting_for_nodes(At()),
    ):
        pass


def test_text_that_cannot_be_prepared_is_an_error_at_once(glances: list[float]) -> None:
    with pytest.raises(ZeroDivisionError), nodes.waiting_for_nodes(At()):
        raise ZeroDivisionError
    assert not glances


def test_processes_of_one_node_wait_by_themselves(glances: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(nodes, "meeting", lambda: pytest.fail("not needed"))
    with nodes.waiting_for_nodes(At()):
        pass
    assert not glances
