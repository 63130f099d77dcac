"""The loss of transformers' causal language models, without the logits."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from mixerzoo.model import IGNORED, is_plain, linear_cross_entropy


def goes_without_logits(head: nn.Module, loss: Callable[..., Any]) -> bool:
    """Whether `loss_without_logits` is the loss: it is the usual one, and so is the head."""
    return loss is ForCausalLMLoss and is_plain(head, nn.Linear) and head.bias is None


def loss_without_logits(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORED,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """As transformers' ``ForCausalLMLoss`` of the head's logits.

    Args:
        hidden: normed hidden states [B, T, D].
        weight: of the head, [V, D].
        labels: int64 [B, T], shifted here.
        num_items_in_batch: what the sum over tokens is divided by; None: the number of those that count.
        ignore_index: label of a token that does not count.
        shift_labels: labels that are shifted already, in place of ``labels``.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.to(hidden.device)
    if num_items_in_batch is None:
        return linear_cross_entropy(hidden, weight, targets, ignore_index=ignore_index)
    total = linear_cross_entropy(hidden, weight, targets, reduction="sum", ignore_index=ignore_index)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
