"""What holds for every test: one thread, poisoned memory, no network, reproducible examples, signals that arrive."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

from mixerzoo.ops import forms

torch.set_num_threads(1)

# A shell that starts the tests in the background has them ignore it, and some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Uninitialised memory is filled with NaN (integers: the largest), so that reading it shows.
torch.use_deterministic_algorithms(True)
assert torch.utils.deterministic.fill_uninitialized_memory


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--form", choices=("naive", "fused"), help="run every operation over depth in this form")


@pytest.fixture(scope="session", autouse=True)
def operations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forms of operations are those that ``--form`` asks for, in this process; else what sizes choose."""
    with forms.forced(request.config.getoption("--form")):
        yield


@pytest.fixture
def forms_by_size() -> Iterator[None]:
    """For a test of what sizes choose: ``--form`` asks for nothing."""
    with forms.forced(None):
        yield


settings.register_profile("fast", derandomize=True, deadline=None, max_examples=20)
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared texts of a module's tests are its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXERZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
