"""Decoders as a benchmark runs them: ours, and transformers' own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from mixerzoo.benchmark.plan import BASELINE, Benchmark
from mixerzoo.errors import BenchmarkError
from mixerzoo.exchange import stock_model
from mixerzoo.model import Decoder, Recompute, initialise_mixer
from mixerzoo.recipe import Recipe, build

#: Largest difference of logits, as a share of the largest logit, of the same model in other arithmetic. The norms of
#: transformers are in float32 for float64, too.
_SAME = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_PROBE_LENGTH = 64


class Model(ABC):
    """A decoder that trains, reads a prompt and writes.

    Args:
        module: whose parameters it has.
        decoder: of ours, that does the same work.
        form: of `FORMS`, in which it is compiled.
    """

    def __init__(self, module: nn.Module, decoder: Decoder, form: str) -> None:
        self.module, self.decoder, self.form = module, decoder, form

    @property
    def is_whole(self) -> bool:
        """Whether each phase is compiled as one graph."""
        return self.form == "whole"

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.module.parameters()).device

    @abstractmethod
    def checkpoint_activations(self, mode: Recompute) -> None:
        """Compute some activations again in the backward; of a peer ``none`` or ``layers``."""

    @abstractmethod
    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of targets [B, T] given tokens [B, T], not compiled as a whole."""

    @abstractmethod
    def compiled_loss(self) -> Any:
        """The same as a function of tokens and targets, through the compiler where that is wanted."""

    @abstractmethod
    def new_past(self, batch: int, length: int) -> Any:
        """An empty cache for so many rows and tokens: of fixed storage where the model is compiled whole."""

    @abstractmethod
    def reader(self) -> Any:
        """A function of a prompt [B, T] and a cache that gives logits [B, 1, V]."""

    @abstractmethod
    def writer(self) -> Any:
        """The same of one token [B, 1]."""

    def _compiled(self, function: Any, *, graph: bool = False) -> Any:
        """A function or module, as one graph where that is wanted; ``graph``: as one CUDA graph on CUDA."""
        if not self.is_whole:
            return function
        mode = "reduce-overhead" if graph and self.device.type == "cuda" else None
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


class OurModel(Model):
    """A decoder of ours; its loss is the one that training takes.

    Args:
        decoder: the model.
        form: as in `Model`.
    """

    def __init__(self, decoder: Decoder, form: str) -> None:
        super().__init__(decoder, decoder, form)

    def checkpoint_activations(self, mode: Recompute) -> None:
        self.decoder.model.activation_checkpointing = mode

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.decoder.loss(tokens, targets)

    def compiled_loss(self) -> Any:
        if self.form == "layers":
            self.decoder.model.compile_training("layers")
        return self._compiled(self.decoder.loss)

    def new_past(self, batch: int, length: int) -> Any:
        return self.decoder.new_cache(batch, max_length=length if self.is_whole else None)

    def reader(self) -> Any:
        run = self._compiled(self.decoder)
        return lambda tokens, past: run(tokens, past, last_only=True)

    def writer(self) -> Any:
        return self._compiled(self.decoder, graph=True)


class StockModel(Model):
    """transformers' model on the same weights; its loss is its own.

    Args:
        decoder: with plain residual addition; it lends its parameters.
        form: as in `Model`; not by the layer.
    """

    def __init__(self, decoder: Decoder, form: str) -> None:
        self.stock = stock_model(decoder)
        self.name = f"transformers {type(self.stock).__name__.removesuffix('ForCausalLM')}"
        # From version 5.24 on it calls the past so.
        self._past = "cache" if "cache" in signature(self.stock.forward).parameters else "past_key_values"
        super().__init__(self.stock, decoder, form)

    def checkpoint_activations(self, mode: Recompute) -> None:
        if mode == "layers":
            stock: Any = self.stock
            # From some version on it calls them activations.
            kind = "activation" if hasattr(stock, "activation_checkpointing_enable") else "gradient"
            getattr(stock, f"{kind}_checkpointing_enable")({"use_reentrant": False})
            stock.train()

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        # Targets are shifted already; without labels it computes no loss.
        loss: Tensor = self.stock(tokens, labels=targets, shift_labels=targets, use_cache=False).loss
        return loss

    def compiled_loss(self) -> Any:
        run = self._compiled(self.stock)
        return lambda tokens, targets: run(tokens, labels=targets, shift_labels=targets, use_cache=False).loss

    def new_past(self, batch: int, length: int) -> Any:
        from transformers import DynamicCache, StaticCache

        config = self.stock.config
        if not self.is_whole:
            return DynamicCache(config=config)
        cache = StaticCache(config=config, max_cache_len=length)
        cache.early_initialization(
            batch, config.num_key_value_heads, config.head_dim, dtype=self.stock.dtype, device=self.device
        )
        return cache

    def reader(self) -> Any:
        run = self._compiled(self.stock)
        return lambda tokens, past: run(tokens, **{self._past: past}, use_cache=True, logits_to_keep=1).logits

    def writer(self) -> Any:
        run = self._compiled(self.stock, graph=True)
        return lambda tokens, past: run(tokens, **{self._past: past}, use_cache=True).logits


def build_decoders(benchmark: Benchmark, dtype: torch.dtype) -> dict[str, Decoder]:
    """The decoders of a benchmark by name. All have the baseline's parameters, and each its mixer's besides.

    Args:
        benchmark: what is timed.
        dtype: of the weights.
    """
    base = build(benchmark.baseline, device=benchmark.device, dtype=dtype)
    variants = {benchmark.named(*key): benchmark.recipes[key[0]] for key in benchmark.variants}
    del variants[BASELINE]
    return {BASELINE: base, **{name: _with_weights_of(base, recipe) for name, recipe in variants.items()}}


def _with_weights_of(base: Decoder, recipe: Recipe) -> Decoder:
    decoder = build(recipe, device="meta")
    shared = dict(base.named_parameters(remove_duplicate=False))
    own = {name for name, _ in decoder.named_parameters(remove_duplicate=False)}
    decoder.mixer.to_empty(device="cpu")
    # Without the projections of steps that borrow keys or values.
    decoder.load_state_dict({name: shared[name] for name in own & shared.keys()}, strict=False, assign=True)
    decoder.mixer.float()
    initialise_mixer(decoder, recipe.seed)
    weight = base.lm_head.weight
    decoder.mixer.to(device=weight.device, dtype=weight.dtype)
    return decoder


@torch.no_grad()
def compare_logits(decoder: Decoder, peer: StockModel) -> float:
    """Largest difference of the logits of a few random tokens, as a share of the largest logit.

    Args:
        decoder: with plain residual addition.
        peer: on the same weights.

    Raises:
        BenchmarkError: they are not those of one model.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(decoder.shape.vocab_size, (1, _PROBE_LENGTH), generator=generator).to(peer.device)
    ours, theirs = decoder(tokens).double(), peer.stock(tokens, use_cache=False).logits.double()
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    allowed = _SAME[decoder.lm_head.weight.dtype]
    if not difference <= allowed:
        raise BenchmarkError(
            f"on the same weights, the logits of {peer.name} differ from ours by {difference:.2g} of the largest "
            f"({allowed:.0e} is allowed): these are two models, and their times cannot be compared"
        )
    return difference
