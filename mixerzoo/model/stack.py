"""The modules of a decoder, and what its steps lend each other: shared by all, whatever their past is.

Parameter names are those of Hugging Face Llama and Qwen3; the mixer's live under ``mixer``.
Letters in shapes: B batch, T tokens of this call, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixerzoo.errors import MixerError
from mixerzoo.mixer import Mixer, Plan
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.layer import Layer
from mixerzoo.model.norm import RMSNorm, compute_dtype
from mixerzoo.model.past import KeysAndValues, Reads
from mixerzoo.model.rope import Rotary


class _Unfilled(TorchFunctionMode):
    """Keeps nn.Linear from initialising what is on the meta device: half of the time of building, for nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is nn.init.kaiming_uniform_ and given["tensor"].is_meta:
            return given["tensor"]
        return func(*args, **given)


class Stack(nn.Module):
    """Embedding, layers, mixer and final norm of a decoder; its forward is a subclass's."""

    def assemble(
        self,
        config: ModelConfig,
        mixer: Mixer,
        attention: Callable[[int, bool, bool], nn.Module],
    ) -> None:
        """Make the modules.

        Args:
            config: sizes and conventions.
            mixer: the mixer that joins the layers.
            attention: makes the attention sublayer of a layer, told its number and whether any of its runs
                owns keys, and values.

        Raises:
            MixerError: the mixer cannot work on such a decoder.
        """
        self.model_config = config
        self.plan: Plan = config.windowed(mixer.plan())
        shape = config.shape()
        _check_plan(config, mixer, self.plan)
        # nn.Embedding's own initialisation loads the compiler on the meta device: a second for nothing.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.empty(shape.vocab_size, config.hidden_size), freeze=False
        )
        plan = self.plan
        steps = range(len(plan.order))
        owning_k = {plan.order[step] for step in steps if plan.owns_k(step)}
        owning_v = {plan.order[step] for step in steps if plan.owns_v(step)}
        with _Unfilled():
            self.layers = nn.ModuleList(
                Layer(config, attention(layer, layer in owning_k, layer in owning_v))
                for layer in range(config.num_layers)
            )
        self.mixer = mixer
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self._k_from = _writers(plan.k_writes, plan.k_reads)
        self._v_from = _writers(plan.v_writes, plan.v_reads)
        self._lending = {writer for read in (*self._k_from, *self._v_from) for writer in read} - {None}

    def scaled(self, x: Tensor) -> Tensor:
        """Embeddings [B, T, D] as the first layer is given them."""
        return x * math.sqrt(self.model_config.hidden_size) if self.model_config.scale_embeddings else x

    def rotary(self, positions: Tensor, x: Tensor) -> Rotary:
        """RoPE at positions [B or 1, T], in the precision that x asks for."""
        config = self.model_config
        return Rotary.at(positions, config.rotary_dim, config.rope_theta, compute_dtype(x), config.rope_scaling)

    def reads(self, step: int, held: Mapping[int, KeysAndValues], *, stores: bool) -> Reads:
        """What a step attends to and earlier ones wrote.

        Args:
            step: its number.
            held: what the steps that lend have written, by their numbers.
            stores: whether there is a past. Without one mixed values are at hand, and no latents are needed.
        """
        k_from, v_from = self._k_from[step], self._v_from[step]
        latents: list[tuple[nn.Module, Tensor]] = []
        if stores and self.model_config.attention == "mla" and len(v_from) > 1:
            for writer in v_from[:-1]:
                assert writer is not None
                kept = held[writer].k
                assert kept is not None
                maker = self.layers[self.plan.order[writer]].self_attn
                assert isinstance(maker, nn.Module)
                latents.append((maker, kept))
            v_from = v_from[-1:]
        return Reads(
            tuple(None if writer is None else held[writer].k for writer in k_from),
            tuple(None if writer is None else held[writer].v for writer in v_from),
            tuple(latents),
        )

    def lends(self, step: int) -> bool:
        """Whether later steps read what a step writes."""
        return step in self._lending


def _writers(writes: Sequence[int | None], reads: Sequence[tuple[int, ...]]) -> tuple[tuple[int | None, ...], ...]:
    """For each step and slot that it reads the step that wrote it last, or None for itself."""
    latest: dict[int, int] = {}
    writers = []
    for step, (slot, read) in enumerate(zip(writes, reads, strict=True)):
        if slot is not None:
            latest[slot] = step
        writers.append(tuple(None if latest[other] == step else latest[other] for other in read))
    return tuple(writers)


def _check_plan(config: ModelConfig, mixer: Mixer, plan: Plan) -> None:
    """Refuse a mixer that cannot work on this decoder, in words."""
    name = repr(mixer.name)
    if max(plan.order, default=-1) >= config.num_layers or min(plan.order, default=0) < 0:
        raise MixerError(f"mixer {name} plans layers {plan.order} of {config.num_layers}")
    borrowing = [step for step in range(len(plan.order)) if not (plan.owns_k(step) and plan.owns_v(step))]
    if plan.needs_own_kv and borrowing:
        raise MixerError(f"mixer {name} needs each layer's own keys and values, but steps {borrowing} borrow theirs")
    if plan.is_sequential and any(window is not None for window in plan.windows):
        raise MixerError(f"mixer {name} lets steps write one slot in turn, and such a slot cannot have a window")
    fusing = [step for step in range(len(plan.order)) if len(plan.k_reads[step]) + len(plan.v_reads[step]) > 2]
    if config.attention == "gqa":
        if "value_weights" in plan.hooks and fusing and "fuse_kv" not in plan.hooks:
            raise MixerError(f"mixer {name} weighs latents, but there are no latents without mla")
        if fusing and "fuse_kv" not in plan.hooks:
            raise MixerError(f"mixer {name} plans that step {fusing[0]} reads several slots, but has no fuse_kv")
        return
    reason = _no_latents(plan)
    if reason is not None:
        raise MixerError(f"mixer {name} cannot work with model.attention mla: {reason}; use gqa")


def _no_latents(plan: Plan) -> str | None:
    """Why a plan cannot be carried out on latents; None where it can."""
    if plan.separate_inputs:
        return "it gives queries, keys and values separate inputs, and there keys and values come from one"
    weighing = "value_weights" in plan.hooks
    per_head = {"mix_raw_kv", "depth_kv", "fuse_kv"} | (set() if weighing else {"mix_kv"})
    if plan.hooks & per_head:
        return "it mixes the keys and values of each head, which are not stored there"
    for step, (k_read, v_read) in enumerate(zip(plan.k_reads, plan.v_reads, strict=True)):
        sums_up = weighing and v_read[-1:] == k_read and list(v_read) == sorted(v_read) and plan.owns_v(step)
        if plan.k_writes[step] != plan.v_writes[step] or (v_read != k_read and not sums_up):
            return "its plan shares keys and values apart, and there both come from one latent"
    return None
