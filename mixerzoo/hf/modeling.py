"""Decoders as Hugging Face models: the same steps, mixers and parameters, over any `transformers.Cache`.

Annotations are evaluated at once here, for transformers reads them. Letters in shapes: B batch, T tokens of this
call, S tokens that attention sees, D hidden size, V vocabulary.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from mixerzoo.errors import MixerError
from mixerzoo.hf.attention import HubPast, LaterRun, MixerZooAttention, MixerZooLatentAttention
from mixerzoo.hf.configuration import FULL, SLIDING, MixerZooConfig
from mixerzoo.hf.keywords import (
    PAST,
    READ_BY_GENERATE,
    check_keywords,
    check_positions,
    check_tail,
    chosen,
    find_past,
    split_loss_keywords,
)
from mixerzoo.hf.loss import goes_without_logits, loss_without_logits
from mixerzoo.hf.pretrained import MixerZooPreTrainedModel, draw
from mixerzoo.hf.torn import refuse_torn, through
from mixerzoo.mixer import AttentionInputs, Context, Site
from mixerzoo.model import KeysAndValues, Run, Stack, earlier


class MixerZooModel(MixerZooPreTrainedModel, Stack):
    """Tokens in, normed hidden states out.

    Args:
        config: the configuration.
    """

    def __init__(self, config: MixerZooConfig) -> None:
        super().__init__(config)
        sizes, mixer_class, options = config.parts()
        mixer = mixer_class(options, sizes.shape())
        plan = sizes.windowed(mixer.plan())

        def attention(layer: int, has_k: bool, has_v: bool) -> nn.Module:
            first = plan.order.index(layer)
            if sizes.attention == "mla":
                return MixerZooLatentAttention(config, sizes, first, has_k)
            joint = has_k and has_v and not plan.separate_inputs
            return MixerZooAttention(config, sizes, first, has_k, has_v, joint)

        self.assemble(sizes, mixer, attention)
        # Not inside their layers: vLLM allows a module's name one number, which is this one.
        self.later_runs = nn.ModuleDict(
            {
                str(step): LaterRun(cast("MixerZooAttention", self.layers[layer].self_attn), step)
                for step, layer in enumerate(plan.order)
                if step != plan.order.index(layer)
            }
        )
        self.gradient_checkpointing = False
        self.post_init()

    def resize_mixer(self, vocab_size: int) -> None:
        """Make the mixer one of a decoder with another vocabulary.

        Args:
            vocab_size: V, rows of the embedding.
        """
        old = self.mixer
        self.model_config = self.model_config.model_copy(update={"vocab_size": vocab_size})
        with torch.device("meta"):
            self.mixer = type(old)(old.config, self.model_config.shape())
        self.mixer.to_empty(device="cpu").train(old.training)
        draw(self.mixer, self.config.initializer_range)
        for name, kept in old.named_parameters():
            drawn = self.mixer.get_parameter(name)
            if drawn.shape != kept.shape:
                values = drawn.detach().to(kept)
                shared = tuple(slice(min(sizes)) for sizes in zip(drawn.shape, kept.shape, strict=True))
                values[shared] = kept.detach()[shared]
                drawn = nn.Parameter(values, kept.requires_grad)
            else:
                drawn = kept
            owner, _, leaf = name.rpartition(".")
            setattr(self.mixer.get_submodule(owner), leaf, drawn)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        cache: Cache | PagedAttentionCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Normed hidden states.

        Args:
            input_ids: token ids [B, T].
            attention_mask: [B, S], 1 for tokens and 0 for padding; or whatever the attention implementation
                takes; or a dictionary of these by layer type.
            position_ids: [B or 1, T]; default: counted from the first token that is not padding.
            past_key_values: what came before.
            inputs_embeds: [B, T, D] in place of ``input_ids``; a mixer that looks tokens up refuses them.
            use_cache: make a cache if none is given.
            output_hidden_states: give what each step's attention reads before its norm, and the last output; or
                those with such numbers alone, with None in place of the others.
            cache: what came before, by the name that transformers gives it from 5.24 on.
            kwargs: passed on to the attention function.

        Raises:
            MixerError: there are two pasts, or one of an unknown kind; or nothing reads one of ``kwargs``.
            CacheError: a forward over the past was interrupted.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        past, pages = find_past(past_key_values, cache)
        refuse_torn(past)
        if use_cache and past is None and pages is None:
            past = DynamicCache(config=self.config)
        self._check_what_is_read(kwargs, attention_mask, position_ids, past, paged=pages is not None)
        x = self.scaled(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        if position_ids is None:
            position_ids = _positions(x, attention_mask, past)
        masks = self._masks(x, attention_mask, past, position_ids)
        kwargs["position_ids"] = position_ids
        run = Run(
            self.mixer,
            self.plan,
            self.rotary(position_ids, x),
            HubPast(self.config, past, pages, masks, self.later_runs, kwargs),
        )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        observe = output_hidden_states is not None and output_hidden_states is not False
        x, observed = through(past, partial(self._steps, input_ids, x, position_ids, run, observe))
        x = self.norm(x)
        kept: dict[str, Any] = {PAST: None if not use_cache else pages if past is None else past}
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            hidden_states=chosen((*observed, x), output_hidden_states) if observe else None,
            **kept,
        )

    def _check_what_is_read(
        self, kwargs: dict[str, Any], mask: Any, positions: Tensor | None, past: Cache | None, *, paged: bool
    ) -> None:
        """Refuse weights in several places, a keyword that nothing reads, and what would tear a tail from its text."""
        self._check_placement()
        check_keywords(
            kwargs,
            str(self.config._attn_implementation),
            pages=paged,
            packed=(positions is not None and mask is None and past is None) or isinstance(mask, dict),
            depth=self.config.needs_eager if "depth_kv" in self.plan.hooks else None,
        )
        if self.plan.tail is not None:
            check_tail(self.mixer.name, self.config._attn_implementation, pages=paged)
            if positions is None:
                check_positions(self.mixer.name, mask, kwargs)

    def _context(self, tokens: Tensor | None, x: Tensor, positions: Tensor, past: HubPast) -> Context:
        """What the mixer is told beside the embeddings x [B, T, D]."""
        tail = self.plan.tail
        if tail is None:
            return Context(tokens)
        new = self.mixer.tail(x, Context(tokens))
        # Its cache layer comes after those of the steps.
        before = past.extend_tail(len(self.plan.order), new, tail.length)
        return Context(tokens, earlier(before, new, positions))

    def _steps(
        self, tokens: Tensor | None, x: Tensor, positions: Tensor, run: Run[HubPast], observe: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The stream after all steps, and, if asked for, what each step's attention reads before its norm."""
        stores, recompute = run.past.stores, self.gradient_checkpointing and self.training and not run.past.stores
        state, observed = self.mixer.start(x, self._context(tokens, x, positions, run.past)), []
        held: dict[int, KeysAndValues] = {}
        # Early exit shortens the configuration.
        for step, number in enumerate(self.plan.order[: self.config.num_hidden_layers]):
            if observe:
                read = self.mixer.read(state, Site(step, number, "attention"))
                observed.append(read.q if isinstance(read, AttentionInputs) else read)
            layer, reads = self.layers[number], self.reads(step, held, stores=stores)
            again = recompute and step % self.checkpoint_every == 0
            run_layer = partial(self._gradient_checkpointing_func, layer.__call__) if again else layer
            state, written = run_layer(state, step, reads, run)
            if self.lends(step):
                held[step] = written
        return self.mixer.finish(state), observed

    def _masks(self, x: Tensor, mask: Any, cache: Cache | None, positions: Tensor) -> dict[str, Any]:
        """A mask for each layer type."""
        if isinstance(mask, dict):
            return mask
        make = {FULL: create_causal_mask, SLIDING: create_sliding_window_causal_mask}
        return {
            kind: make[kind](
                config=self.config,
                inputs_embeds=x,
                attention_mask=mask,
                position_ids=positions,
                **{PAST: cache},
            )
            for kind in dict.fromkeys(self.config.layer_types[: len(self.plan.order)])
        }


def _positions(x: Tensor, mask: Any, cache: Cache | None) -> Tensor:
    """Positions [B or 1, T] of the new tokens, counted from the first one that the mask [B, S] leaves in."""
    num_new = x.size(1)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -num_new:]
    start = 0 if cache is None else cache.get_seq_length()
    return (torch.arange(num_new, device=x.device) + start)[None]


class MixerZooForCausalLM(MixerZooPreTrainedModel, GenerationMixin):
    """A decoder language model with a mixer, as a Hugging Face model.

    Args:
        config: the configuration.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  as transformers declares it

    def __init__(self, config: MixerZooConfig) -> None:
        super().__init__(config)
        self.model = MixerZooModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | PagedAttentionCache | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where there are labels.

        Args:
            input_ids: as in `MixerZooModel.forward`, like the next four.
            attention_mask: as there.
            position_ids: as there.
            past_key_values: as there.
            inputs_embeds: as there.
            labels: [B, T], shifted here; -100 is ignored.
            use_cache: as there.
            logits_to_keep: compute those of so many last positions, or of these positions; 0: all.
            cache: as there.
            skip_logits: give the loss alone. The logits are then computed a part at a time and not kept, where the loss
                is the usual one and the head a plain product. Default: give them, as transformers' own models do.
            kwargs: for the loss and the attention function.

        Raises:
            MixerError, CacheError: as there; or something is for a loss, and there are no labels.
        """
        self._check_placement()
        for_loss, kwargs = split_loss_keywords(kwargs, self.loss_function, labels=labels is not None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cache=cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden, logits, loss = outputs.last_hidden_state[:, kept], None, None
        if skip_logits:
            loss = self._loss_alone(hidden, labels, for_loss)
        else:
            logits = self.lm_head(hidden)
        if labels is not None and logits is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **for_loss)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{PAST: getattr(outputs, PAST)},
        )

    def _loss_alone(self, hidden: Tensor, labels: Tensor | None, options: dict[str, Any]) -> Tensor:
        """The loss, of logits that nobody asked for."""
        if labels is None:
            raise MixerError("skip_logits: without labels the logits are all there is; pass labels")
        if goes_without_logits(self.lm_head, self.loss_function):
            return loss_without_logits(hidden, self.lm_head.weight, labels, **options)
        loss: Tensor = self.loss_function(
            logits=self.lm_head(hidden), labels=labels, vocab_size=self.config.vocab_size, **options
        )
        return loss

    def _get_static_cache_init_shape(self) -> None:
        """No shape in advance: steps may share a slot or keep one half of it, so what comes first sizes a layer."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in transformers, without what `generate` has read itself and passes on all the same."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        return {name: value for name, value in inputs.items() if name not in READ_BY_GENERATE}

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; what `generate_batch` and its server start with.

        Raises:
            MixerError: the mixer joins entries along depth to the softmax, or keeps a tail, or values are wider than
                keys.
        """
        if self.model.plan.tail is not None:
            check_tail(self.model.mixer.name, None, pages=True)
        if "depth_kv" in self.model.plan.hooks:
            raise MixerError(f"{self.config.needs_eager}, which no paged attention computes; use generate")
        latent = self.config.mla
        if latent is not None and latent["v_head_dim"] > self.config.head_dim:
            raise MixerError(
                f"values of {latent['v_head_dim']} elements are wider than keys of {self.config.head_dim}, for which "
                "paged caches have no room; use generate"
            )
        return super().init_continuous_batching(*args, **kwargs)
