"""The configuration of a decoder as a Hugging Face model: the same ``config.json`` that `save_checkpoint` writes."""

import os
from dataclasses import field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from mixerzoo.checkpoints import own_config, read_own, write_shim
from mixerzoo.errors import CheckpointError, MixerError
from mixerzoo.files import MANIFEST_FILE
from mixerzoo.hf.split import tensor_parallel_plan, why_whole
from mixerzoo.mixer import Mixer, MixerConfig, Tail
from mixerzoo.model import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
#: Keys that are derived, and that other models are given.
_OF_THE_PLAN = ("sliding_window", "layer_types")


@strict
class MixerZooConfig(PreTrainedConfig):
    """Sizes, conventions and the mixer, under the keys of ``config.json``.

    To transformers a layer is what has a cache layer, which here is a step of the mixer's plan, and after the steps its
    tail: the attributes ``num_hidden_layers``, ``layer_types`` and ``sliding_window`` are the plan's. In
    ``config.json``, and as an argument here, ``num_hidden_layers`` is the number of physical layers, with which a
    looped decoder makes more steps than one each.

    Raises:
        CheckpointError: a value is wrong, or the mixer is not installed.
        MixerError: the mixer cannot work on such a decoder, or transformers has no cache for its plan.
    """

    model_type = "mixerzoo"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  as transformers declares it

    vocab_size: int = 257
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float | int = 10000.0
    rms_norm_eps: float | int = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: float | int = 0.02
    hidden_act: str = "silu"
    qk_norm: bool = True
    k_norm: str = "pre_rope"
    scale_embeddings: bool = False
    loop: dict[str, Any] = field(default_factory=dict)
    attention: str = "gqa"
    mla: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    attention_bias: str = "none"
    mlp_bias: bool = False
    attention_window: int | None = None
    attention_window_layers: list[int] | None = None
    mixer: dict[str, Any] = field(default_factory=lambda: {"name": "residual"})
    mixer_plugin: dict[str, Any] | None = None
    mixerzoo_version: str | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.get("rope_parameters"):
            raise CheckpointError("rope_parameters is no key of mixerzoo; set rope_theta and rope_scaling")
        self.derive(kwargs.get("name_or_path"))
        for key in _OF_THE_PLAN:
            if key in kwargs and kwargs[key] != getattr(self, key):
                raise _follows(key)
        super().__post_init__(**kwargs)

    def derive(self, where: str | None = None) -> None:
        """Set what follows from the other attributes. To be called where one of these may have been set anew.

        Args:
            where: what errors call the configuration.
        """
        if self.num_hidden_layers != len(getattr(self, "layer_types", None) or ()):
            # Given in physical layers, at first or anew.
            self.num_physical_layers = self.num_hidden_layers
        model, mixer_class, options = self.parts(where)
        # Of what an engine caches that keeps keys and values of every head.
        self.num_key_value_heads, self.head_dim = model.resolved_kv_heads, model.resolved_head_dim
        self.loop = model.loop.model_dump()
        with torch.device("meta"):
            mixer = mixer_class(options, model.shape())
        plan = model.windowed(mixer.plan())
        steps = range(len(plan.order))
        windows = {plan.window(step) for step in steps} - {None}
        if len(windows) > 1 or windows == {1}:
            raise MixerError(
                f"mixer {mixer.name!r} plans windows of {sorted(filter(None, windows))} tokens; the caches of "
                "transformers know one window, of at least 2"
            )
        if plan.is_sequential:
            raise MixerError(
                f"mixer {mixer.name!r} lets steps write one slot in turn, which the caches of transformers cannot do; "
                "use `mixerzoo generate` and mixerzoo's own Decoder"
            )
        self.layer_types = [FULL if plan.window(step) is None else SLIDING for step in steps]
        self.sliding_window = next(iter(windows), None)
        if plan.tail is not None:
            self._add_tail(mixer.name, plan.tail)
        self.num_hidden_layers = len(self.layer_types)
        #: Why no rank can have a part of it, if so.
        self.needs_whole = why_whole(mixer, model)
        plan_of_ranks = None if self.needs_whole else tensor_parallel_plan(model)
        self.base_model_tp_plan = plan_of_ranks  # type: ignore[misc]  # of the mixer, not of the class
        #: Why attention must be the written-out one, if so.
        self.needs_eager = None
        if "depth_kv" in plan.hooks:
            self.needs_eager = f"mixer {mixer.name!r} joins entries along depth to the softmax"
        elif "value_weights" in plan.hooks:
            self.needs_eager = f"mixer {mixer.name!r} sums values over the latents of several steps"

    def _add_tail(self, mixer: str, tail: Tail) -> None:
        """A cache layer after those of the steps, which holds the vectors of the last tokens as one head's keys.

        What a cache does to its layers (crop, reorder, repeat, offload) it does to the tail then.
        """
        # A layer of window w keeps w − 1 past tokens.
        self.sliding_window = self.sliding_window or tail.length + 1
        if self.sliding_window <= tail.length:
            raise MixerError(
                f"mixer {mixer!r} keeps a tail of {tail.length} vectors beside a window of {self.sliding_window} "
                f"tokens, and the caches of transformers know one window; set it to at least {tail.length + 1}"
            )
        self.layer_types.append(SLIDING)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As `PreTrainedConfig.from_dict`; keys among ``kwargs`` take the place of those in the dictionary."""
        for key in _OF_THE_PLAN:
            if key in kwargs:
                raise _follows(key)
        # transformers would set them on the finished configuration, from which more has been derived by then.
        own = {key: kwargs.pop(key) for key in list(kwargs) if key in MixerZooConfig.__annotations__}
        return super().from_dict({**config_dict, **own}, **kwargs)

    def parts(self, where: str | None = None) -> tuple[ModelConfig, type[Mixer], MixerConfig]:
        """What a decoder is built from: its sizes, the mixer, and the mixer's options.

        Args:
            where: what errors call the configuration.
        """
        where = where or self.name_or_path or type(self).__name__
        if self.hidden_act != "silu":
            raise CheckpointError(f"{where}: hidden_act is {self.hidden_act!r}; this decoder computes 'silu'")
        raw = vars(self) | {"num_hidden_layers": self.num_physical_layers}
        if self.attention == "mla" and "needs_eager" in raw:
            # By now set by `derive`; they are not sizes of latent attention.
            raw |= {"num_key_value_heads": None, "head_dim": None}
        return read_own(raw, where)

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` says."""
        output: dict[str, Any] = super().to_dict()
        for derived in (
            *("num_physical_layers", "layer_types", "sliding_window"),
            *("needs_eager", "needs_whole", "base_model_tp_plan"),
        ):
            output.pop(derived, None)
        model, mixer, options = self.parts()
        described = own_config(model, mixer.name, options)
        if self.architectures:
            described["architectures"] = self.architectures
        return output | described

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write ``config.json``, and the shim that its ``auto_map`` names.

        A run's manifest goes, since what it lists is written anew: this file, and by a model its weights next.
        """
        self.derive()
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MANIFEST_FILE).unlink(missing_ok=True)
        write_shim(directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: transformers would copy this file beside the weights, where the shim does better."""


def _follows(key: str) -> CheckpointError:
    return CheckpointError(
        f"{key} follows from the mixer's plan and the decoder's window; set attention_window and "
        "attention_window_layers"
    )
