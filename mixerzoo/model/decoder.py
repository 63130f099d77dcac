"""The decoder over our own cache: attention, masks, the head, and the initial weights.

Parameter names are those of Hugging Face Llama and Qwen3; the mixer's live under ``model.mixer``.
Letters in shapes: B batch, T tokens of this call, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.errors import CacheError, MixerError
from mixerzoo.mixer import Context, Mixer, MixerConfig, Plan, State
from mixerzoo.model.attention import Attention
from mixerzoo.model.backend_fit import check_fit
from mixerzoo.model.backends import AttentionMask, BackendName, Visibility, make_mask
from mixerzoo.model.cache import KVCache
from mixerzoo.model.cached_past import CachedPast
from mixerzoo.model.compiled import compiled
from mixerzoo.model.config import ModelConfig
from mixerzoo.model.inputs import check_inputs, check_targets
from mixerzoo.model.latent_attention import LatentAttention
from mixerzoo.model.loss import linear_cross_entropy, token_losses
from mixerzoo.model.past import KeysAndValues, Run
from mixerzoo.model.recompute import Recompute, recomputed
from mixerzoo.model.regions import Compiled, Regions
from mixerzoo.model.rope import Rotary
from mixerzoo.model.stack import Stack
from mixerzoo.model.tail import earlier


class _NewTokens(NamedTuple):
    """The tokens of one call.

    Attributes:
        ids: [B, T].
        x: their embeddings [B, T, D].
        places: where they come in the row, int64 [T].
        positions: where they come in their text, [B or 1, T]: after padding and in each document from 0.
    """

    ids: Tensor
    x: Tensor
    places: Tensor
    positions: Tensor

    def one(self, t: int) -> _NewTokens:
        """The t-th of them alone."""
        one = slice(t, t + 1)
        return _NewTokens(self.ids[:, one], self.x[:, one], self.places[one], self.positions[:, one])


class Backbone(Stack):
    """Tokens in, normed hidden states out, over a `KVCache`.

    Args:
        config: sizes and conventions.
        mixer: the mixer that joins the layers.

    Raises:
        MixerError: the mixer cannot work on this decoder.
        BackendError: the attention backend would not compute all of its attention.
    """

    def __init__(self, config: ModelConfig, mixer: Mixer) -> None:
        super().__init__()
        latent = config.attention == "mla"
        self.assemble(
            config,
            mixer,
            lambda _, has_k, has_v: LatentAttention(config, has_k) if latent else Attention(config, has_k, has_v),
        )
        self.activation_checkpointing: Recompute = "none"
        #: Whether positions count from 0 in each document of a packed row, or through the row.
        self.reset_positions = True
        self._regions: Regions | None = None
        self._whole: Callable[..., Tensor] | None = None
        self._is_sequential = self.plan.is_sequential
        check_fit(config, self.plan, mixer.name)
        self._backend: BackendName = config.attention_backend

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        left_padding: Tensor | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
        advances: bool = True,
    ) -> Tensor:
        """Normed hidden states [B, T, D], or [B, 1, D] with ``last_only``; arguments as in `Decoder.forward`.

        Without ``advances`` the caller does the last `KVCache.advance` of `num_left`.
        """
        if self._is_sequential and self.activation_checkpointing != "none" and torch.is_grad_enabled():
            raise MixerError(
                f"mixer {self.mixer.name!r} lets steps write one slot in turn, which cannot be computed again in the "
                "backward; set train.activation_checkpointing to none"
            )
        if self._whole is not None and cache is None and torch.is_grad_enabled():
            return self._whole(tokens, None, left_padding, documents, last_only)
        hidden = self._forward(tokens, cache, left_padding, documents, last_only)
        if cache is not None and advances:
            cache.advance(self.num_left(tokens))
        return hidden

    def num_left(self, tokens: Tensor) -> int:
        """How many of the tokens [B, T] are not past when all their steps are through."""
        return 1 if self._is_sequential else tokens.size(1)

    def compile_training(self, mode: Compiled) -> None:
        """Have `torch.compile` run the forwards that have gradients and no cache, and their backwards.

        Args:
            mode: ``layers`` compiles what repeats once for all layers; ``whole`` all of it as one graph, which takes
                longer with each layer; ``off`` nothing. Raises as `Regions` does.
        """
        self._regions = Regions(self.plan, self.mixer) if mode == "layers" else None
        self._whole = compiled(self._forward) if mode == "whole" else None

    def _forward(
        self,
        tokens: Tensor,
        cache: KVCache | None,
        left_padding: Tensor | None,
        documents: Tensor | None,
        last_only: bool,
    ) -> Tensor:
        new = self._new_tokens(tokens, cache, left_padding, documents)
        if not self._is_sequential or tokens.size(1) == 1:
            return self._steps(new, cache, left_padding, documents, last_only=last_only)
        if cache is None:
            sizes = self.model_config.shape()
            cache = KVCache(self.plan, sizes, new.x.size(0), dtype=new.x.dtype, device=new.x.device)
        hidden = []
        for t in range(tokens.size(1)):
            if t:
                cache.advance(1)
            hidden.append(self._steps(new.one(t), cache, left_padding, documents))
        return hidden[-1] if last_only else torch.cat(hidden, dim=1)

    def _steps(
        self,
        new: _NewTokens,
        cache: KVCache | None,
        left_padding: Tensor | None,
        documents: Tensor | None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """All steps of the new tokens."""
        run = self._run(new, cache, left_padding, documents)
        num_new, last_step = new.x.size(1), len(self.plan.order) - 1
        recompute = self.activation_checkpointing if torch.is_grad_enabled() and cache is None else "none"
        narrows = last_only and documents is None and num_new > 1
        state = self.mixer.start(new.x, self._context(new, cache))
        held: dict[int, KeysAndValues] = {}
        for step, number in enumerate(self.plan.order):
            layer, reads = self.layers[number], self.reads(step, held, stores=cache is not None)
            run_layer: Callable[..., tuple[State, KeysAndValues]] = layer
            if self._regions is not None and cache is None and torch.is_grad_enabled():
                run_layer = partial(self._regions.step, layer)
            state, written = recomputed(run_layer, recompute, step)(state, step, reads, run)
            if self.lends(step):
                held[step] = written
            # Later steps only read what is stored by now, so tokens whose logits nobody asks for end here.
            if narrows and step == self.plan.last_owner < last_step:
                narrowed = self.mixer.last_token(state)
                if narrowed is not None:
                    state, run = narrowed, self._for_last_token(run)
        x = self.mixer.finish(state)
        hidden: Tensor = self.norm(x[:, -1:] if last_only else x)
        return hidden

    def _new_tokens(
        self, ids: Tensor, cache: KVCache | None, left_padding: Tensor | None, documents: Tensor | None
    ) -> _NewTokens:
        x = self.scaled(self.embed_tokens(ids))
        if cache is None:
            places = torch.arange(ids.size(1), device=x.device)
        else:
            if cache.plan != self.plan:
                raise CacheError("this cache was made for another plan; use decoder.new_cache()")
            if documents is not None:
                raise CacheError("packed documents cannot be decoded through a cache; pass cache=None")
            places = cache.positions(ids.size(1))
        positions = places[None]
        if left_padding is not None:
            positions = (positions - left_padding[:, None]).clamp(min=0)
        if documents is not None:
            positions = _positions_in_documents(documents)
        return _NewTokens(ids, x, places, positions)

    def _context(self, new: _NewTokens, cache: KVCache | None) -> Context:
        """What the mixer is told beside the embeddings."""
        tail = self.plan.tail
        if tail is None:
            return Context(new.ids)
        vectors = self.mixer.tail(new.x, Context(new.ids))
        if cache is None:
            past = vectors.new_zeros(vectors.size(0), tail.length, tail.width)
        else:
            past = cache.extend_tail(vectors)
        return Context(new.ids, earlier(past, vectors, new.positions))

    def _run(
        self, new: _NewTokens, cache: KVCache | None, left_padding: Tensor | None, documents: Tensor | None
    ) -> Run[CachedPast]:
        """What the steps share."""
        masks = self._masks(new.places, cache, left_padding, documents)
        past = CachedPast(self.plan, cache, masks, self._backend)
        through = documents is not None and not self.reset_positions
        positions = new.places[None] if through else new.positions
        return Run(self.mixer, self.plan, self.rotary(positions, new.x), past)

    def _for_last_token(self, run: Run[CachedPast]) -> Run[CachedPast]:
        """What the steps share once only the last of the new tokens goes on."""
        # The positions of keys stay those of the beginning.
        past = run.past
        masks = {
            window: self._mask(mask.visibility._replace(queries=mask.visibility.queries[-1:]), past.cache)
            for window, mask in past.masks.items()
        }
        rotary = Rotary(run.rotary.cos[:, :, -1:], run.rotary.sin[:, :, -1:])
        return run._replace(rotary=rotary, past=CachedPast(self.plan, past.cache, masks, self._backend))

    def _masks(
        self,
        queries: Tensor,
        cache: KVCache | None,
        left_padding: Tensor | None,
        documents: Tensor | None,
    ) -> dict[int | None, AttentionMask]:
        """A mask for each window of the plan, of queries at absolute positions [T]."""
        # Compiled, a step over a cache sees all that it has room for.
        last = cache is None or not torch.compiler.is_compiling()
        masks: dict[int | None, AttentionMask] = {}
        for window in {self.plan.window(step): None for step in range(len(self.plan.order))}:
            keys = queries if cache is None else cache.key_positions(window, queries.size(0))
            masks[window] = self._mask(Visibility(queries, keys, window, left_padding, documents, last), cache)
        return masks

    def _mask(self, rule: Visibility, cache: KVCache | None) -> AttentionMask:
        """A rule in the form that the backend reads."""
        sees_all = rule.queries.size(0) == 1 and rule.window is None and rule.padding is None and rule.documents is None
        if cache is not None and cache.max_length is not None and torch.compiler.is_compiling():
            sees_all = False
        return make_mask(rule, self._backend, sees_all)


class Decoder(nn.Module):
    """A decoder language model with one mixer.

    Args:
        config: sizes and conventions; its ``vocab_size`` must be set.
        mixer: class of the mixer.
        mixer_config: its options; default: all defaults.

    Raises:
        MixerError: the mixer cannot work on this decoder.
        BackendError: the attention backend would not compute all of its attention.
    """

    def __init__(self, config: ModelConfig, mixer: type[Mixer], mixer_config: MixerConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.shape = config.shape()
        self.model = Backbone(config, mixer(mixer_config or mixer.Config(), self.shape))
        self.lm_head = nn.Linear(config.hidden_size, self.shape.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head share the embedding's weight if the configuration says so.

        Moving a decoder off the meta device gives each of them storage of its own, so it is called then too.
        """
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def mixer(self) -> Mixer:
        """The mixer that joins the layers."""
        return self.model.mixer

    @property
    def plan(self) -> Plan:
        """Order of layers and cache slots."""
        return self.model.plan

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        *,
        left_padding: Tensor | None = None,
        documents: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the next token at every position.

        Args:
            tokens: int64 [B, T].
            cache: what came before; it is read, filled and advanced. None: nothing came before.
            left_padding: int64 [B], how many tokens on the left of each row are padding. With a cache,
                pass the same counts at every call.
            documents: int64 [B, T], the document of each token of a packed batch, ascending: tokens see only their own,
                and positions restart with it, unless ``model.reset_positions`` is off. Not together with a cache.
            last_only: compute the logits of the last position only, and skip the other tokens in steps that
                store no keys and values any more (see `Mixer.last_token`).

        Returns:
            [B, T, V], or [B, 1, V] with ``last_only``.

        Raises:
            CacheError: the cache has another plan or batch size, or no room.
            InputError: tokens, padding or documents of a wrong shape, type or range.
        """
        check_inputs(
            tokens, self.shape.vocab_size, cached=cache is not None, left_padding=left_padding, documents=documents
        )
        options = {"left_padding": left_padding, "documents": documents, "last_only": last_only}
        logits: Tensor = self.lm_head(self.model(tokens, cache, **options, advances=False))
        if cache is not None:
            cache.advance(self.model.num_left(tokens))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the next tokens; their logits are computed a part at a time and not kept.

        In float32, or float64 for float64 weights. Its gradients are computed with it, so it can be differentiated
        once.

        Args:
            tokens: int64 [B, T].
            targets: int64 [B, T], the token after each; −100 for one that does not count.
            documents: as in `forward`.

        Raises:
            InputError: tokens, targets or documents of a wrong shape, type or range.
        """
        return linear_cross_entropy(self._hidden(tokens, targets, documents), self.lm_head.weight, targets)

    def token_losses(self, tokens: Tensor, targets: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """Cross-entropy [B, T] of each next token, without gradients; arguments and errors as in `loss`.

        It is 0 where a token does not count.
        """
        with torch.no_grad():
            return token_losses(self._hidden(tokens, targets, documents), self.lm_head.weight, targets)

    def _hidden(self, tokens: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        check_inputs(tokens, self.shape.vocab_size, cached=False, left_padding=None, documents=documents)
        check_targets(targets, tokens, self.shape.vocab_size)
        hidden: Tensor = self.model(tokens, documents=documents)
        return hidden

    def new_cache(
        self,
        batch_size: int,
        max_length: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        max_rollback: int = 0,
    ) -> KVCache:
        """An empty cache for this decoder.

        Args:
            batch_size: B.
            max_length: tokens of fixed storage; None for storage that grows.
            dtype: of the stored keys and values; default: that of the weights.
            max_rollback: see `KVCache`.
        """
        weight = self.lm_head.weight
        return KVCache(
            self.plan,
            self.shape,
            batch_size,
            dtype=dtype or weight.dtype,
            device=weight.device,
            max_length=max_length,
            max_rollback=max_rollback,
        )

    def num_parameters(self) -> tuple[int, int]:
        """How many parameters the decoder, without its mixer, and the mixer have (tied weights count once)."""
        mixing = sum(p.numel() for p in self.mixer.parameters())
        return sum(p.numel() for p in self.parameters()) - mixing, mixing


def _positions_in_documents(documents: Tensor) -> Tensor:
    """Positions [B, T] that count from 0 in every document of a packed row [B, T]."""
    index = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
    starts = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values
