"""What both Hugging Face models have in common: initial values, reading and writing directories.

Annotations are evaluated at once here, for transformers reads them.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from mixerzoo.checkpoints import CARD_FILE, INDEX_FILE, WEIGHTS_FILE, model_card
from mixerzoo.errors import MixerError
from mixerzoo.hf.attention import MixerZooAttention, MixerZooLatentAttention
from mixerzoo.hf.configuration import MixerZooConfig
from mixerzoo.hf.split import check_device_map, check_ranks, sum_gradients
from mixerzoo.mixer import Mixer
from mixerzoo.model import RMSNorm

#: Says that transformers, and nobody else, wrote a card.
_BLANK_CARD = "This model card has been automatically generated"


class MixerZooPreTrainedModel(PreTrainedModel):
    """What both models have in common."""

    config: MixerZooConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    #: Where layers are computed again, it is one step in so many, the first among them.
    checkpoint_every: int = 1
    _no_split_modules = ["Layer"]  # noqa: RUF012  as transformers declares it
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "attentions": [OutputRecorder(kind, index=3) for kind in (MixerZooAttention, MixerZooLatentAttention)]
    }

    def __init__(self, config: MixerZooConfig, *inputs: Any, **kwargs: Any) -> None:
        config.derive()
        distributed, tied = getattr(config, "distributed_config", None), bool(config.tie_word_embeddings)
        check_ranks(distributed, config.needs_whole, config.num_key_value_heads or 1, tied)
        if config.needs_eager is not None:
            if config._attn_implementation not in (None, "eager"):
                raise MixerError(
                    f"{config.needs_eager}, which the attention implementation {config._attn_implementation!r} does "
                    "not compute; leave attn_implementation out, or set it to 'eager'"
                )
            config._attn_implementation = "eager"
        super().__init__(config, *inputs, **kwargs)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Code from elsewhere is trusted to initialise loaded weights again, so modules without parameters of their
        # own are skipped: here, mixers.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            initialization.ones_(module.weight)
        elif isinstance(module, Mixer):
            _init_mixer(module, std)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        if enable and getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise MixerError(
                "re-entrant activation checkpointing loses the gradients of what mixers carry from layer to layer; "
                'leave gradient_checkpointing_kwargs out, or pass {"use_reentrant": False}'
            )
        if every_n_layers < 1:
            raise MixerError(f"every_n_layers is {every_n_layers}; it must be at least 1, which is every layer")
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)
        for module in self.modules():
            if isinstance(module, MixerZooPreTrainedModel):
                module.checkpoint_every = every_n_layers

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`, with weights in memory of their own, and never from pickles."""
        given = kwargs.setdefault("use_safetensors", True)
        if given is not True:
            raise MixerError(f"use_safetensors is {given!r}, but weights are read from safetensors only; leave it out")
        device_map = kwargs.get("device_map")
        check_device_map(device_map if isinstance(device_map, dict) else None)
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._check_placement()
        for parameter in model.parameters():
            # A mapped file is not aligned as memory is, which shows in the last bits of products.
            if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
        sum_gradients(model)
        return loaded

    def _check_placement(self) -> None:
        """Refuse to be on several devices, as maps that accelerate makes may want it.

        Raises:
            MixerError: names them.
        """
        check_device_map(getattr(self, "hf_device_map", None))

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel.save_pretrained`, with a model card where there is none."""
        card = Path(save_directory) / CARD_FILE
        is_main_process = args[0] if args else kwargs.get("is_main_process", True)
        if is_main_process and not card.exists():
            card.parent.mkdir(parents=True, exist_ok=True)
            card.write_text(self._card(), encoding="utf-8")
        forms = [Path(save_directory) / name for name in (WEIGHTS_FILE, INDEX_FILE)]
        before = [_written(form) for form in forms]
        super().save_pretrained(save_directory, *args, **kwargs)
        current = [_written(form) for form in forms]
        if is_main_process and None not in current and current != before:
            # One form was written beside the other, which is older and would be read in its place.
            [older] = [form for form, was, now in zip(forms, before, current, strict=True) if was == now]
            older.unlink()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As `PreTrainedModel.resize_token_embeddings`, with what the mixer keeps of each token.

        New rows have the mixer's initial values.
        """
        embeddings: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        decoder: Any = self.base_model
        decoder.resize_mixer(embeddings.num_embeddings)
        return embeddings

    def _card(self) -> str:
        origin = "Saved by `save_pretrained` of mixerzoo's Hugging Face model."
        return model_card(self.config.mixer["name"], self.num_parameters(), origin=origin, prompt=None)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        # transformers has put its blank form over the card, unless the repository had one of its own.
        path = Path(working_dir) / CARD_FILE
        if _BLANK_CARD in path.read_text(encoding="utf-8"):
            path.write_text(self._card(), encoding="utf-8")
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing, as in `MixerZooConfig`."""


def _written(path: Path) -> tuple[int, int] | None:
    """What changes whenever a file is written; None where there is none."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _init_mixer(mixer: Mixer, std: float) -> None:
    """Initial values for those parameters that no checkpoint gave one."""
    missing = [name for name, p in mixer.named_parameters() if not getattr(p, "_is_hf_initialized", False)]
    if not missing or mixer.get_parameter(missing[0]).is_meta:
        return
    # Its own generator is on the CPU, and what it draws must not touch loaded values.
    twin = copy.deepcopy(mixer).cpu()
    draw(twin, std)
    for name in missing:
        mixer.get_parameter(name).copy_(twin.get_parameter(name))


@torch.no_grad()
def draw(mixer: Mixer, std: float) -> None:
    """Give a mixer on the CPU its initial values; the global generator has the seed, as everywhere in transformers."""
    mixer.reset_parameters(torch.Generator().manual_seed(int(torch.randint(1 << 62, (), device="cpu"))), std)
