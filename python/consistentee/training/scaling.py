"""Calibrates the classifiers: one temperature, and one bias a class, for each.

Letters: N rows, L layers, C classes or labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from consistentee.model.loss import exit_loss

TEMPERATURE_SD = 1.0  # of its logarithm
BIAS_SD = 20**-0.5  # with 16 classes and 176 rows biases of this size cost nothing


@dataclass(frozen=True)
class Scaling:
    """``z_l / t_l + b_l`` in place of a layer's logits.

    Attributes:
        temperatures: t, ``[L]``.
        biases: b, ``[L, C]``.
    """

    temperatures: Tensor
    biases: Tensor

    def __call__(self, exit_logits: Tensor) -> Tensor:
        """Calibrated logits of ``[N, L, C]``."""
        return exit_logits / self.temperatures[:, None] + self.biases

    @torch.no_grad()
    def apply_to(self, heads: nn.ModuleList) -> None:
        """Change the classifier of each head, so that it computes the calibrated logits."""
        for head, temperature, bias in zip(heads, self.temperatures, self.biases, strict=True):
            classifier = cast(Any, head.get_submodule("classifier"))
            classifier.weight.div_(temperature)
            classifier.bias.div_(temperature).add_(bias)


def fit_scaling(exit_logits: Tensor, labels: Tensor) -> Scaling:
    """The scaling under which the labels are the likeliest, given where it is expected.

    ``argmin_(t, b) sum_rows CE(z_l / t_l + b_l, y) + log(t_l)^2 / 2 + |b_l|^2 / (2 sd^2)``:
    temperature scaling (arXiv 1706.04599) with a bias a class (arXiv 1901.06852), and normal
    distributions expected of log t and b, because a classifier that is right on all rows has no
    finite optimum, and because a class may have few rows.

    Args:
        exit_logits: z, ``[N, L, C]``, of rows the classifiers were not trained on.
        labels: y, ``[N]`` int64, of sets ``[N, C]``.
    """
    logits = exit_logits.double()
    log_scales = logits.new_zeros(logits.shape[1], 1, requires_grad=True)
    biases = torch.zeros_like(logits[0], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_scales, biases], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss_of_all() -> Tensor:
        optimizer.zero_grad()
        loss = exit_loss(logits * log_scales.exp() + biases, labels).sum()
        expected = (log_scales / TEMPERATURE_SD).square().sum() + (biases / BIAS_SD).square().sum()
        total = (loss + expected / 2) / len(logits)
        cast(Any, total).backward()
        return total

    optimizer.step(cast(Any, loss_of_all))
    temperatures = (-log_scales.detach()).exp().squeeze(1)
    return Scaling(temperatures.to(exit_logits), biases.detach().to(exit_logits))
