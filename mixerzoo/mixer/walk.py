"""A forward of a mixer alone, of zeros, without a decoder: for what can be seen from the calls themselves.

The calls are made on the CPU: on the meta device PyTorch would load its compiler, for more than a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mixerzoo.mixer.calls import AttentionCall, AttentionInputs, Context, State
from mixerzoo.mixer.shape import Site, sites_of

if TYPE_CHECKING:
    from mixerzoo.mixer.base import Mixer

#: Bytes of a parameter above which all its elements are one (tables of embeddings).
_LARGE = 2**26


class Made(NamedTuple):
    """What a call of a mixer made.

    Attributes:
        hook: ``"start"``, ``"read"``, ``"mix_raw_kv"``, ``"mix_kv"``, ``"write"`` or ``"finish"``.
        site: where; None at the beginning and the end.
        state: after it.
        given: what the decoder gets: nothing, the inputs of a sublayer, a key and a value, or what the head reads.
    """

    hook: str
    site: Site | None
    state: State
    given: tuple[Tensor, ...] = ()


def of_zeros(mixer: Mixer, dtype: torch.dtype, *, requires_grad: bool = False) -> Mixer:
    """The same mixer on the CPU, all of whose parameters are zeros.

    Args:
        mixer: on any device; nothing of it is read but its class, options and shape.
        dtype: of the parameters.
        requires_grad: of the parameters.
    """
    with torch.device("meta"):
        twin = type(mixer)(mixer.config, mixer.shape).to(dtype).train(mixer.training)
    for module in twin.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_zeros(parameter), requires_grad=requires_grad))
    return twin


def _zeros(parameter: Tensor) -> Tensor:
    """Zeros in place of a parameter on the meta device."""
    if parameter.nbytes > _LARGE:
        return torch.zeros((), dtype=parameter.dtype, device="cpu").expand(parameter.shape)
    return torch.zeros(parameter.shape, dtype=parameter.dtype, device="cpu")


class Walk:
    """A forward of a mixer alone.

    Args:
        mixer: on the CPU.
        dtype: of hidden states.
        num_tokens: T.
    """

    def __init__(self, mixer: Mixer, dtype: torch.dtype, num_tokens: int) -> None:
        self.mixer, self.dtype, self.num_tokens = mixer, dtype, num_tokens

    def zeros(self, before: tuple[int, ...], after: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """A tensor [B, before…, T, after…] that a decoder would give the mixer."""
        return torch.zeros(1, *before, self.num_tokens, *after, dtype=dtype or self.dtype)

    def output(self, site: Site | None) -> Tensor:
        """What a sublayer puts out, or, of None, the embedding [B, T, D]."""
        return self.zeros((), (self.mixer.shape.hidden_size,))

    def made(self, through: Callable[[State], State] = lambda state: state) -> Iterator[Made]:
        """What each call made, in the order of a forward.

        Args:
            through: what becomes of a state before the next call gets it.
        """
        mixer, plan = self.mixer, self.mixer.plan()
        tail = plan.tail
        earlier = () if tail is None else tuple(self.zeros((), (tail.width,)) for _ in range(tail.length))
        state = mixer.start(self.output(None), Context(self.zeros((), (), torch.int64), earlier))
        yield Made("start", None, state)
        for site in sites_of(plan.order):
            state = through(state)
            stream = mixer.read(state, site)
            yield Made("read", site, state, tuple(stream) if isinstance(stream, AttentionInputs) else (stream,))
            owns = plan.owns_k(site.step) and plan.owns_v(site.step)
            if site.branch == "attention" and owns and plan.hooks & {"mix_raw_kv", "mix_kv"}:
                call = self._call(site, stream)
                if "mix_raw_kv" in plan.hooks:
                    state, k, v = mixer.mix_raw_kv(state, call)
                    yield Made("mix_raw_kv", site, state, (k, v))
                    state = through(state)
                    # The head norm and RoPE make new keys.
                    fresh = self.zeros((mixer.shape.num_kv_heads,), (mixer.shape.head_dim,))
                    call = call._replace(k=fresh, v=v)
                if "mix_kv" in plan.hooks:
                    state, k, v = mixer.mix_kv(state, call)
                    yield Made("mix_kv", site, state, (k, v))
                    state = through(state)
            state = mixer.write(state, site, self.output(site))
            yield Made("write", site, state)
        yield Made("finish", None, state, (mixer.finish(through(state)),))

    def _call(self, site: Site, stream: Tensor | AttentionInputs) -> AttentionCall:
        """What the hooks of an attention site are told."""
        shape = self.mixer.shape
        normed = [self.zeros((), (shape.hidden_size,)) for _ in range(3)]
        return AttentionCall(
            site=site,
            stream=stream,
            x=AttentionInputs(*normed) if isinstance(stream, AttentionInputs) else normed[0],
            q=self.zeros((shape.num_heads,), (shape.head_dim,)),
            k=self.zeros((shape.num_kv_heads,), (shape.head_dim,)),
            v=self.zeros((shape.num_kv_heads,), (shape.v_head_dim,)),
            rotate=torch.empty_like,
        )
