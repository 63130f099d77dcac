"""What a program asked other libraries to say, they say again after ours are done."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from mixerzoo.process import errors_alone
from mixerzoo.training import train
from runs import tiny_recipe


def test_a_library_logs_errors_alone_for_a_while() -> None:
    logger = logging.getLogger("a_library")
    logger.setLevel(logging.DEBUG)
    levels = []

    def block() -> None:
        with errors_alone("a_library"):
            levels.append(logger.level)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert levels == [logging.ERROR]
    assert logger.level == logging.DEBUG


def test_training_leaves_transformers_as_talkative_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXERZOO_CACHE", str(tmp_path / "cache"))
    before = transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity(logging.INFO)
        train(tiny_recipe("train.steps=2"), tmp_path / "run")
        assert transformers_logging.get_verbosity() == logging.INFO
    finally:
        transformers_logging.set_verbosity(before)
