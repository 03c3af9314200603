"""Calibrates confidence: one temperature per classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from consistentee.model.loss import exit_loss


def best_temperatures(exit_logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature of each layer that minimises its mean cross-entropy: ``[L]``, in 1/4..8.

    ``t_l = argmin_t mean_rows CE(z_l / t, y)`` (arXiv 1706.04599), on a grid with steps of 3.5%.
    The grid is bounded because a classifier that is right on all rows has no finite optimum.

    Args:
        exit_logits: z, ``[N, L, C]``, of rows the classifiers were not trained on.
        labels: y, ``[N]`` int64, of sets ``[N, C]``.
    """
    grid = torch.logspace(-2, 3, 101, base=2, device=exit_logits.device)
    losses = [exit_loss(exit_logits / t, labels).mean(dim=0) for t in grid]
    return grid[torch.stack(losses).argmin(dim=0)]


@torch.no_grad()
def apply_temperatures(heads: nn.ModuleList, temperatures: Tensor) -> None:
    """Divide the logits of each head's classifier by its temperature; no prediction changes."""
    for head, temperature in zip(heads, temperatures, strict=True):
        classifier = head.get_submodule("classifier")
        for parameter in classifier.parameters():
            parameter.div_(temperature)
