"""Tensor parallelism of transformers: two ranks give what one process gives, and what cannot be split says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers.distributed import DistributedConfig

import mixerzoo
import two_ranks
import zoo
from command_line import on_two_ranks
from mixerzoo import DecoderShape, MixerConfig, Plan
from mixerzoo.errors import MixerError
from mixerzoo.hf import MixerZooConfig, MixerZooForCausalLM
from mixerzoo.hf.split import why_whole
from mixerzoo_plugins.residual import Residual
from zoo import ZooCase

#: Mixers whose hooks need all heads, or have parameters of each.
WHOLE = {"fusedkv", "lime", "moda", "satformer", "value_embedding"}
#: Those with hooks that need none of the other heads; clause 9.3 holds them to it.
APART = {"compose", "depth_attention", "value_residual"}


#: Before this version transformers splits words between two ranks only where there are as many for each, and takes a
#: tied head for a split one.
TIES = Version(transformers.__version__) >= Version("5.21")
VOCABULARY = {} if TIES else {"vocab_size": 20}


def config_of(case: ZooCase, place: Path, **model: object) -> MixerZooConfig:
    """The configuration of a case's decoder, whose weights lie in a folder."""
    mixerzoo.save_checkpoint(zoo.make(case, dtype=torch.float32, **model), place)
    return MixerZooConfig.from_pretrained(place)


@pytest.mark.parametrize("case", zoo.PLAIN_CASES, ids=lambda case: case.mixer)
def test_which_mixers_can_be_split(case: ZooCase, tmp_path: Path) -> None:
    config = config_of(case, tmp_path)
    assert (config.base_model_tp_plan is None) == (config.needs_whole is not None) == (case.mixer in WHOLE)
    assert not {"base_model_tp_plan", "needs_whole", "tp_plan"} & config.to_dict().keys()
    config.distributed_config = DistributedConfig(tp_size=2)
    if case.mixer in WHOLE:
        with pytest.raises(MixerError, match=rf"mixer '{case.mixer}' needs .* cannot be split among 2 ranks"):
            MixerZooForCausalLM(config)
        return
    assert (case.mixer in APART) == bool(zoo.shared(case).plan.heads_apart)
    plan = MixerZooForCausalLM(config).tp_plan
    assert plan["lm_head"] == "colwise_gather_output"
    assert plan["model.layers.*.self_attn.o_proj"] == "rowwise"


def test_a_gate_of_each_head_and_latents_stay_whole(tmp_path: Path) -> None:
    gated = config_of(ZooCase("value_residual", {"gate": True}), tmp_path / "gated")
    assert "parameters of each" in (gated.needs_whole or "")
    sizes = {"kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4}
    latent = MixerZooConfig(attention="mla", mla=sizes, num_key_value_heads=None, head_dim=None)
    assert latent.needs_whole == "latent attention has no plan of tensor parallelism"


class Both(Residual):
    """Nobody can tell whether its parameter sees some of the heads, or whole hidden states."""

    def __init__(self, config: MixerConfig, shape: DecoderShape) -> None:
        super().__init__(config, shape)
        self.scale = nn.Parameter(torch.empty(()))

    def plan(self) -> Plan:
        return replace(super().plan(), hooks=frozenset({"mix_kv"}), heads_apart=True)


def test_hooks_and_parameters_of_what_is_no_attention_mixer_stay_whole() -> None:
    sizes = zoo.shared(ZooCase("residual")).config
    assert "is no AttentionMixer" in (why_whole(Both(MixerConfig(), sizes.shape()), sizes) or "")


def test_heads_must_be_shared_out_evenly(tmp_path: Path) -> None:
    config = config_of(ZooCase("residual"), tmp_path)
    config.distributed_config = DistributedConfig(tp_size=3)
    with pytest.raises(MixerError, match="2 key/value heads cannot be shared out to 3 ranks; set tp_size to a divisor"):
        MixerZooForCausalLM(config)


def test_two_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    config_of(ZooCase("residual"), tmp_path / "residual", tie_embeddings=TIES, **VOCABULARY)
    config_of(ZooCase("depth_attention"), tmp_path / "depth_attention", **VOCABULARY)
    config_of(ZooCase("value_residual"), tmp_path / "value_residual", **VOCABULARY)
    config_of(ZooCase("lime"), tmp_path / "refused")
    said = on_two_ranks(
        two_ranks, (tmp_path / name for name in ("residual", "depth_attention", "value_residual", "refused"))
    )
    for line in ("equal residual", "equal depth_attention", "equal value_residual", "refused: mixer 'lime' needs"):
        assert said.count(line) == 1


@pytest.mark.slow
def test_two_ranks_give_what_one_process_gives_for_every_mixer(tmp_path: Path) -> None:
    cases = [case for case in zoo.REGISTERED_CASES if config_of(case, tmp_path / "any").needs_whole is None]
    for number, case in enumerate(cases):
        config_of(case, tmp_path / str(number), tie_embeddings=TIES and bool(number % 2), **VOCABULARY)
    said = on_two_ranks(two_ranks, (tmp_path / str(number) for number in range(len(cases))))
    assert said.count("equal ") == len(cases)
    assert {case.mixer for case in cases} >= set(zoo.REGISTERED) - WHOLE


def test_a_tied_head_is_refused_where_transformers_would_give_its_logits_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied, apart = (config_of(ZooCase("residual"), tmp_path / str(tie), tie_embeddings=tie) for tie in (True, False))
    for config in (tied, apart):
        config.distributed_config = DistributedConfig(tp_size=2)
    for older in ("5.16.1", "5.20.0"):
        monkeypatch.setattr(transformers, "__version__", older)
        MixerZooForCausalLM(apart)
        with pytest.raises(MixerError, match=rf"transformers {older} leaves an embedding whole.*5\.21 or later"):
            MixerZooForCausalLM(tied)
    monkeypatch.setattr(transformers, "__version__", "5.21.0")
    MixerZooForCausalLM(tied)
