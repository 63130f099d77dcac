"""Other engines train the Hugging Face model on several ranks as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import engines
import mixerzoo
import zoo
from command_line import on_two_ranks
from zoo import ZooCase


def said_of(cases: list[ZooCase], place: Path) -> str:
    """What two ranks say of the decoders of these cases."""
    folders = [place / f"{number}_{case.mixer}" for number, case in enumerate(cases)]
    for folder, case in zip(folders, cases, strict=True):
        mixerzoo.save_checkpoint(zoo.make(case, dtype=torch.float32), folder)
    return on_two_ranks(engines, folders)


def test_accelerate_and_pytorch_s_own_sharding_train_as_one_process_does(tmp_path: Path) -> None:
    cases = [ZooCase("depth_attention"), ZooCase("attn_res"), ZooCase("hyper_connections")]
    assert said_of(cases, tmp_path).count("equal ") == len(cases)


@pytest.mark.slow
def test_they_do_for_every_mixer(tmp_path: Path) -> None:
    cases = list(zoo.REGISTERED_CASES)
    assert {case.mixer for case in cases} == set(zoo.REGISTERED)
    assert said_of(cases, tmp_path).count("equal ") == len(cases)
