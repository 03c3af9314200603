"""The hardness of a row: its Memorized Layer."""

from __future__ import annotations

import torch
from torch import Tensor


def memorized_layer(exit_logits: Tensor, labels: Tensor) -> Tensor:
    """The smallest l such that layers l..L all predict the label; L if the last one is wrong.

    Returns ``[B]`` int64 in 1..L (arXiv 2312.11882).

    Args:
        exit_logits: ``[B, L, C]``.
        labels: ``[B]`` int64.
    """
    correct = exit_logits.argmax(dim=-1) == labels[:, None]
    streak = correct.flip(1).long().cumprod(dim=1).sum(dim=1)  # from the last layer down
    num_layers = exit_logits.shape[1]
    return torch.clamp(num_layers + 1 - streak, max=num_layers)
