"""Decoders as Hugging Face models.

Importing this package registers them with the Auto classes, and lets `transformers.Trainer` ask their mixers which
parameters decay.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mixerzoo.hf.configuration import MixerZooConfig
from mixerzoo.hf.decay import teach_trainer
from mixerzoo.hf.modeling import MixerZooForCausalLM, MixerZooModel

__all__ = ["MixerZooConfig", "MixerZooForCausalLM", "MixerZooModel"]

AutoConfig.register(MixerZooConfig.model_type, MixerZooConfig)
AutoModel.register(MixerZooConfig, MixerZooModel)
AutoModelForCausalLM.register(MixerZooConfig, MixerZooForCausalLM)
teach_trainer()
