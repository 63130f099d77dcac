"""Chapter 7: what is saved comes back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from mixerzoo.checkpoints import load_checkpoint, save_checkpoint
from mixerzoo.mixer import Mixer, MixerEntry, load_registry
from mixerzoo.testing.case import Case
from mixerzoo.testing.check import assert_same, clause


@clause("7.1", large=())
def config_round_trip(mixer: type[Mixer], case: Case) -> None:
    """Options survive a dump to plain values and to JSON, and unknown ones are refused.

    Sees: options, not run.
    Blind: options that only files written elsewhere have.
    """
    config = mixer.Config.model_validate(dict(case.options))
    assert mixer.Config.model_validate(config.model_dump()) == config, "options changed in a round trip"
    assert mixer.Config.model_validate_json(config.model_dump_json()) == config, "options changed through JSON"
    assert mixer.Config.model_config.get("extra") == "forbid", "Config must refuse unknown options (extra='forbid')"


@clause("7.2")
@torch.no_grad()
def state_dict_round_trip(mixer: type[Mixer], case: Case) -> None:
    """A decoder of other weights that loads the state dict gives the same bits.

    Sees: float64; without gradients.
    Blind: state dicts of other versions of the mixer.
    """
    decoder = case.decoder(mixer)
    other = replace(case, seed=case.seed + 1).decoder(mixer)
    other.load_state_dict(decoder.state_dict())
    tokens = case.tokens()
    assert_same(other(tokens), decoder(tokens), "logits after loading the state dict")


@clause("7.3", large=())
@torch.no_grad()
def checkpoint_round_trip(mixer: type[Mixer], case: Case) -> None:
    """A checkpoint gives back the same decoder, options included.

    Sees: float64; with gradients.
    Blind: checkpoints of several files, and narrower dtypes.
    """
    decoder = case.decoder(mixer)
    with tempfile.TemporaryDirectory() as directory, registered(mixer):
        save_checkpoint(decoder, directory)
        loaded = load_checkpoint(directory)
    assert loaded.mixer.config == decoder.mixer.config, "options changed in a checkpoint"
    tokens = case.tokens()
    assert_same(loaded(tokens), decoder(tokens), "logits of the loaded checkpoint")


@clause("7.4", large=())
def stock_checkpoints(mixer: type[Mixer], case: Case) -> None:
    """The checkpoint of a plain decoder is not taken for one of the method's.

    Sees: names and shapes of a Llama.
    Blind: plain checkpoints of other families.
    """
    config = case.config()
    stock = {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.resolved_kv_heads,
        "head_dim": config.resolved_head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    plain = replace(case, options={}).decoder(load_registry().get("residual").mixer)
    tensors = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    reading = mixer.read_reference(stock, tensors)
    assert reading is None, f"a plain decoder's checkpoint is read with the options {dict(reading.options)}"


@contextmanager
def registered(mixer: type[Mixer]) -> Iterator[None]:
    """Have the registry know a mixer, installed or not, while the context lasts.

    Args:
        mixer: any class.
    """
    entries = load_registry().entries
    before = entries.get(mixer.name)
    if before is None or before.mixer is not mixer:
        entries[mixer.name] = MixerEntry(mixer, "under-test", "0", "under-test:mixer")
    try:
        yield
    finally:
        if before is None:
            del entries[mixer.name]
        else:
            entries[mixer.name] = before
