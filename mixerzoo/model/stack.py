"""The walk over the steps of a plan: what every decoder shares, whatever its cache and its attention are.

Parameter names are those of Hugging Face Llama and Qwen3; the mixer's live under ``mixer``.
Letters in shapes: B batch, T tokens of this call, D hidden size, H query heads, G key/value heads, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo.errors import MixerError
from mixerzoo.mixer import AttentionInputs, Context, DepthEntries, Mixer, Plan, Site, State
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.layer import Attention, Layer, RMSNorm, Rotary, compute_dtype


class KeysAndValues(NamedTuple):
    """Keys and values that one step attends to; with latent attention, latents and weights of their sums."""

    k: Tensor
    v: Tensor


class Borrowed(NamedTuple):
    """What a step reads of earlier ones: their keys, their values, and the latents that its values come from."""

    k: KeysAndValues | None
    v: KeysAndValues | None
    latents: tuple[Tensor, ...]

    def beside(self, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """A step's own keys and values, with the borrowed ones where it has none."""
        if k is None:
            assert self.k is not None
            k = self.k.k
        if v is None:
            assert self.v is not None
            v = self.v.v
        return k, v


class Stack(nn.Module):
    """Embedding, layers, mixer and final norm, and the walk over the steps of the plan.

    What the past is and how attention over it is computed is a subclass's: see `attend`.
    """

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
        self.embed_tokens = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            torch.empty(shape.vocab_size, config.hidden_size), freeze=False
        )
        plan = self.plan
        steps = range(len(plan.order))
        owning_k = {plan.order[step] for step in steps if plan.owns_k(step)}
        owning_v = {plan.order[step] for step in steps if plan.owns_v(step)}
        self.layers = nn.ModuleList(
            Layer(config, attention(layer, layer in owning_k, layer in owning_v)) for layer in range(config.num_layers)
        )
        self.mixer = mixer
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self._lent = {
            step
            for step in steps
            if step in plan.k_slot[step + 1 :]
            or step in plan.v_slot[step + 1 :]
            or any(step in sources for sources in plan.latent_sources[step + 1 :])
        }

    def scaled(self, x: Tensor) -> Tensor:
        """Embeddings [B, T, D] as the first layer is given them."""
        return x * math.sqrt(self.model_config.hidden_size) if self.model_config.scale_embeddings else x

    def rotary(self, positions: Tensor, x: Tensor) -> Rotary:
        """RoPE at positions [B or 1, T], in the precision that x asks for."""
        config = self.model_config
        return Rotary.at(positions, config.rotary_dim, config.rope_theta, compute_dtype(x), config.rope_scaling)

    def walk(
        self,
        x: Tensor,
        context: Context,
        shared: Any,
        *,
        num_steps: int | None = None,
        recompute: Callable[..., Any] | None = None,
        narrow: Callable[[], Any] | None = None,
        watch: Callable[[State, Site], None] | None = None,
    ) -> Tensor:
        """The stream [B, T, D] after all steps, before the final norm.

        Args:
            x: embeddings [B, T, D].
            context: what else the mixer is told.
            shared: what the steps of one forward share, for `attend`. Its ``cache`` is None where there is no past.
            num_steps: stop after so many steps; default: all.
            recompute: runs a layer so that its activations are computed again in the backward.
            narrow: makes of ``shared`` that of the last token alone, if only that one is wanted; [B, 1, D] is
                returned where the mixer can give it.
            watch: is shown the state before each step.
        """
        state = self.mixer.start(x, context)
        held: dict[int, KeysAndValues] = {}
        last_step = len(self.plan.order) - 1
        for step in range(len(self.plan.order))[:num_steps]:
            # Without a cache mixed values are at hand, and no latents of other steps are needed.
            sources = () if shared.cache is None else self.plan.sources_of_latents(step)[:-1]
            borrowed = Borrowed(
                held.get(self.plan.k_slot[step]),
                held.get(self.plan.v_slot[step]),
                tuple(held[source].k for source in sources),
            )
            layer = self.layers[self.plan.order[step]]
            if watch is not None:
                watch(state, Site(step, self.plan.order[step], "attention"))
            if recompute is not None:
                state, kv = recompute(layer, self._step, state, borrowed, step, shared)
            else:
                state, kv = layer(self._step, state, borrowed, step, shared)
            if step in self._lent:
                held[step] = kv
            # Later steps only read what is stored by now, so tokens whose logits nobody asks for end here.
            if narrow is not None and step == self.plan.last_owner < last_step:
                narrowed = self.mixer.last_token(state)
                if narrowed is not None:
                    state, shared = narrowed, narrow()
        return self.mixer.finish(state)

    def attend(
        self, layer: Layer, state: State, x: Tensor | AttentionInputs, borrowed: Borrowed, site: Site, shared: Any
    ) -> tuple[State, Tensor, KeysAndValues]:
        """The attention sublayer: store what the step owns, and attend to that and to what is borrowed.

        Args:
            layer: the weights.
            state: of the mixer.
            x: normed inputs.
            borrowed: of earlier steps.
            site: where.
            shared: as `walk` was given it.

        Returns:
            The mixer's state, the output [B, T, D], and the keys and values that were attended to.
        """
        raise NotImplementedError

    def attention_of(self, step: int) -> nn.Module:
        """The attention module that a step runs."""
        layer = self.layers[self.plan.order[step]]
        assert isinstance(layer, Layer)
        return layer.self_attn

    def mixed(
        self, attn: Attention, state: State, site: Site, q: Tensor, k: Tensor | None, v: Tensor | None, rotary: Rotary
    ) -> tuple[State, Tensor, Tensor | None, Tensor | None]:
        """Projected heads of the new tokens made into what is attended to and stored: norms, RoPE, the mixer's hooks.

        Args:
            attn: the attention module.
            state: of the mixer.
            site: where.
            q: [B, H, T, d].
            k: [B, G, T, d], or None where the step owns no keys.
            v: [B, G, T, d], or None where the step owns no values.
            rotary: RoPE of the tokens.
        """
        q = attn.query(q, rotary)
        if k is not None and v is not None:
            state, k, v = self.mixer.mix_raw_kv(state, site, k, v)
        if k is not None:
            k = attn.key(k, rotary)
        if k is not None and v is not None:
            state, k, v = self.mixer.mix_kv(state, site, q, k, v)
        return state, q, k, v

    def depth_entries(self, state: State, site: Site, q: Tensor, rotary: Rotary) -> DepthEntries | None:
        """What the mixer joins to the softmax of queries [B, H, T, d], if anything."""
        if not self.mixer.defines("depth_kv"):
            return None
        return self.mixer.depth_kv(state, site, q, rotary.rotate)

    def _step(
        self, layer: Layer, state: State, borrowed: Borrowed, step: int, shared: Any
    ) -> tuple[State, KeysAndValues]:
        site = Site(step, self.plan.order[step], "attention")
        x = self.mixer.read(state, site)
        if isinstance(x, AttentionInputs):
            x = AttentionInputs(*(layer.input_layernorm(part) for part in x))
        else:
            x = layer.input_layernorm(x)
        state, y, kv = self.attend(layer, state, x, borrowed, site, shared)
        state = self.mixer.write(state, site, y)

        site = site._replace(branch="mlp")
        x = self.mixer.read(state, site)
        if isinstance(x, AttentionInputs):
            raise MixerError(f"mixer {self.mixer.name!r} returned AttentionInputs at an MLP site")
        state = self.mixer.write(state, site, layer.mlp(layer.post_attention_layernorm(x)))
        return state, kv


def _check_plan(config: ModelConfig, mixer: Mixer, plan: Plan) -> None:
    """Refuse a mixer that cannot work on this decoder, in words."""
    if max(plan.order, default=-1) >= config.num_layers or min(plan.order, default=0) < 0:
        raise MixerError(f"mixer {mixer.name!r} plans layers {plan.order} of {config.num_layers}")
    borrowing = [s for s in range(len(plan.order)) if not (plan.owns_k(s) and plan.owns_v(s))]
    if mixer.needs_own_kv and borrowing:
        raise MixerError(
            f"mixer {mixer.name!r} needs each layer's own keys and values, but steps {borrowing} borrow theirs"
        )
    if config.attention == "gqa":
        if plan.latent_sources:
            raise MixerError(f"mixer {mixer.name!r} plans latent_sources, but there are no latents without mla")
        return
    reason = None
    per_head = ("mix_raw_kv", "depth_kv") if mixer.defines("value_weights") else ("mix_raw_kv", "depth_kv", "mix_kv")
    if mixer.separate_inputs:
        reason = "it gives queries, keys and values separate inputs, and there keys and values come from one"
    elif any(k != v for k, v in zip(plan.k_slot, plan.v_slot, strict=True)):
        reason = "its plan shares keys and values apart, and there both come from one latent"
    elif any(mixer.defines(hook) for hook in per_head):
        reason = "it mixes the keys and values of each head, which are not stored there"
    if reason is not None:
        raise MixerError(f"mixer {mixer.name!r} cannot work with model.attention mla: {reason}; use gqa")
