"""The loss without the logits is the loss of the logits, and takes the memory of a part of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from mixerzoo.errors import InputError
from mixerzoo.model import chunk_tokens, linear_cross_entropy, loss
from zoo import ZooCase, some_tokens

N, D, V = 37, 12, 50


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_SMALLEST", 4 * V)
    assert chunk_tokens(N, V) == 5


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (N, V))
    targets = torch.randint(V, (N,), generator=generator)
    targets[::5] = loss.IGNORED
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def of_logits(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction=reduction)


def compiled(*arguments: Any, **options: Any) -> Tensor:
    return torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")(*arguments, **options)


@pytest.mark.parametrize("form", [linear_cross_entropy, compiled])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("dtype", "close", "of_gradients"),
    [(torch.float64, 1e-13, 1e-13), (torch.float32, 1e-6, 1e-5), (torch.bfloat16, 1e-6, 0.01)],
)
def test_it_is_that_of_the_logits(
    form: Any, reduction: Any, dtype: torch.dtype, close: float, of_gradients: float
) -> None:
    hidden, weight, targets = operands(dtype)
    found, expected = form(hidden, weight, targets, reduction=reduction), of_logits(hidden, weight, targets, reduction)
    assert found.dtype == expected.dtype
    assert found.item() == pytest.approx(expected.item(), rel=close)
    pairs = [torch.autograd.grad(each / 3, [hidden, weight]) for each in (found, expected)]
    for ours, theirs in zip(*pairs, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= of_gradients * theirs.norm()


def test_under_autocast_the_product_alone_is_short() -> None:
    hidden, weight, targets = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = linear_cross_entropy(hidden, weight, targets), of_logits(hidden, weight, targets)
        tokens = loss.token_losses(hidden, weight, targets.clamp(min=0))
    assert found.dtype == tokens.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(each, weight)[0] for each in (found, expected))
    assert (ours - theirs).norm() <= 0.01 * theirs.norm()
    exact, _, _ = operands(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_cross_entropy(exact, weight.detach().double(), targets).dtype == torch.float64


def test_no_gradient_is_too_small_for_float16() -> None:
    generator, num_tokens, vocab_size = torch.Generator().manual_seed(0), 8192, 4096
    hidden = torch.randn(num_tokens, 8, generator=generator).requires_grad_()
    weight = (torch.randn(vocab_size, 8, generator=generator) * 0.02).requires_grad_()
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    expected = torch.autograd.grad(of_logits(hidden, weight, targets), [hidden, weight])
    with torch.autocast("cpu", torch.float16):
        scaled = linear_cross_entropy(hidden, weight, targets) * 2.0**16
    for ours, theirs in zip(torch.autograd.grad(scaled, [hidden, weight]), expected, strict=True):
        assert (ours / 2**16 - theirs).norm() <= 1e-3 * theirs.norm()


def test_no_gradient_is_too_large_for_float16() -> None:
    generator, num_tokens, vocab_size = torch.Generator().manual_seed(0), 65_536, 64
    hidden = torch.randn(num_tokens, 4, generator=generator)
    hidden[:, 0] = 40.0
    weight = (torch.randn(vocab_size, 4, generator=generator) * 0.02).requires_grad_()
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    targets[::4] = 7
    [expected] = torch.autograd.grad(of_logits(hidden, weight, targets), [weight])
    with torch.autocast("cpu", torch.float16):
        scaled = linear_cross_entropy(hidden, weight, targets) * 2.0**16
    [found] = torch.autograd.grad(scaled, [weight])
    assert (found / 2**16 - expected).norm() <= 1e-3 * expected.norm()
    # Weights in float16, whose gradient can hold the mean of all tokens and not the sum.
    for form in (linear_cross_entropy, compiled):
        short = weight.detach().half().requires_grad_()
        [found] = torch.autograd.grad(form(hidden.half(), short, targets), [short])
        assert found.dtype == torch.float16
        assert (found - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("shape", [(N,), (0,), (1, N)])
def test_scores_of_targets(shape: tuple[int, ...]) -> None:
    hidden, weight, targets = operands(torch.float32)
    hidden, targets = hidden[: shape[-1]].view(*shape, D), targets[: shape[-1]].view(shape).clamp(min=0)
    logits = F.linear(hidden, weight)
    targets = torch.where(targets % 2 == 0, logits.argmax(-1), targets)
    losses, likeliest = loss.target_scores(hidden, weight, targets)
    assert likeliest.equal(logits.argmax(-1) == targets)
    expected = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(shape)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)


def test_what_counts() -> None:
    hidden, weight, targets = operands(torch.float64)
    assert linear_cross_entropy(hidden, weight, torch.full_like(targets, loss.IGNORED)).isnan()
    other = linear_cross_entropy(hidden, weight, targets.masked_fill(targets < 0, 7), ignore_index=7)
    expected = F.cross_entropy(F.linear(hidden, weight), targets.masked_fill(targets < 0, 7), ignore_index=7)
    assert other.item() == pytest.approx(expected.item(), rel=1e-13)
    frozen = linear_cross_entropy(hidden, weight.detach(), targets)
    assert torch.autograd.grad(frozen, hidden)[0].norm() > 0


def test_the_loss_of_each_token_is_0_where_it_does_not_count() -> None:
    hidden, weight, targets = operands(torch.float64)
    expected = F.cross_entropy(F.linear(hidden, weight), targets, reduction="none")
    assert not expected[::5].any()
    torch.testing.assert_close(loss.token_losses(hidden, weight, targets), expected.detach(), rtol=1e-13, atol=0)
    assert not loss.token_losses(hidden, weight, torch.full_like(targets, loss.IGNORED)).any()
    decoder, tokens = zoo.shared(ZooCase("residual")), some_tokens(2, 5)
    some = tokens.roll(-1, 1).index_fill(1, torch.tensor([1, 4]), loss.IGNORED)
    each = decoder.token_losses(tokens, some)
    assert each[:, [1, 4]].eq(0).all()
    assert each.sum().item() / 6 == pytest.approx(decoder.loss(tokens, some).item(), rel=1e-13)


def test_gradients_are_used_once() -> None:
    hidden, weight, targets = operands(torch.float64)
    found = linear_cross_entropy(hidden, weight, targets)
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        found.backward()
    grad = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)[0]
    assert not grad.requires_grad


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that was made."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        sizes = [
            each.numel() for each in (out if isinstance(out, list | tuple) else (out,)) if isinstance(each, Tensor)
        ]
        self.elements = max(self.elements, *sizes, 0)
        return out


def test_a_decoder_s_loss_makes_no_more_than_a_part_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_SMALLEST", 1)
    decoder, tokens = zoo.make(ZooCase("denseformer"), vocab_size=500), some_tokens(2, 200)
    decoder(tokens[:, :2])
    with Largest() as largest:
        decoder.loss(tokens, tokens.roll(-1, 1)).backward()
    assert largest.elements == 50 * 500
    expected = F.cross_entropy(decoder(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
    found = decoder.loss(tokens, tokens.roll(-1, 1))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    each = decoder.token_losses(tokens, tokens.roll(-1, 1))
    assert each.mean().item() == pytest.approx(expected.item(), rel=1e-12)
    assert each.shape == tokens.shape


def test_targets_that_are_none() -> None:
    decoder, tokens = zoo.make(ZooCase("residual")), some_tokens(2, 4)
    with pytest.raises(InputError, match=r"targets are torch.int64 of shape \[2, 3\]"):
        decoder.loss(tokens, tokens[:, 1:])
    with pytest.raises(InputError, match=r"targets range from -1 to"):
        decoder.loss(tokens, tokens.clone().fill_(-1))


_PEAK = """
import resource, sys, torch
import torch.nn.functional as F
from mixerzoo.model import linear_cross_entropy
hidden, weight = torch.randn(4096, 64, requires_grad=True), torch.randn(50304, 64, requires_grad=True)
targets = torch.randint(50304, (4096,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "logits":
    F.cross_entropy(F.linear(hidden, weight), targets).backward()
else:
    linear_cross_entropy(hidden, weight, targets).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_peak_memory_falls_by_most_of_what_the_logits_took() -> None:
    logits, parts = (
        int(subprocess.run([sys.executable, "-c", _PEAK, form], check=True, capture_output=True, text=True).stdout)
        for form in ("logits", "parts")
    )
    assert parts < 0.2 * logits
