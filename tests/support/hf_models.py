"""Hugging Face models of the zoo's cases."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import zoo
from case import LATENT, LOOPED
from mixerzoo import Decoder, save_checkpoint
from mixerzoo.hf import MixerZooForCausalLM
from zoo import ZooCase

#: On latent attention: a stream, values from one latent and from several, borrowed latents, windows.
LATENT_CASES = tuple(
    ZooCase(mixer, options, {**LATENT, **model})
    for mixer, options, model in (
        ("denseformer", {}, {}),
        ("depth_attention", {"stride": 1}, {}),
        ("depth_attention", {"stride": 2, "sources": "relative"}, LOOPED),
        ("cla", {}, {}),
        ("yoco", {"window": 3}, {}),
    )
)
#: Mixers with a tail, for which quantised caches and engines that keep the past themselves have no room.
TAILED = ("smear",)
#: What the plan can do to a cache: loops, slots of keys or values alone, borrowed ones, windows, tails, and separate
#: inputs.
CHOSEN: tuple[ZooCase, ...] = (
    *zoo.PLAIN_CASES,
    *LATENT_CASES,
    *(case for case in zoo.REGISTERED_CASES if case.mixer in ("depth_attention", "yoco") and "loop" in case.model),
)
#: A test for each case; those that were not chosen are slow ones.
every_case = zoo.parametrized((*zoo.REGISTERED_CASES, *LATENT_CASES), CHOSEN)


def model_of(decoder: Decoder, **options: Any) -> MixerZooForCausalLM:
    """The Hugging Face model of a decoder, through a checkpoint; ``options`` are those of ``from_pretrained``."""
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(decoder, directory)
        model = AutoModelForCausalLM.from_pretrained(Path(directory), **options)
    assert isinstance(model, MixerZooForCausalLM)
    return model.eval()


@functools.cache
def shared(case: ZooCase) -> MixerZooForCausalLM:
    """The model of `zoo.shared`, made once. Tests must leave it as it is."""
    return model_of(zoo.shared(case))


def fresh(case: ZooCase, *, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Decoder, MixerZooForCausalLM]:
    """A decoder that a test may change, and its model."""
    decoder = zoo.make(case, dtype=dtype)
    return decoder, model_of(decoder, **options)
