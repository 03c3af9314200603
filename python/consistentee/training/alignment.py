"""States of one trunk in the terms of another: what a policy learns on the one holds on the other.

Two trunks that start from the same weights and see most rows alike arrive at states that differ,
for the most part, by an affine map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.linear_model import Ridge
from torch import Tensor

RIDGE = 1e-3  # of the variance of a feature: a few hundred rows must determine H x H numbers


class Alignment(NamedTuple):
    """The affine map of each layer: ``weight [L, H, H]``, ``bias [L, H]``."""

    weight: Tensor
    bias: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """``weight_l s + bias_l`` of states s, ``[N, L, H]``."""
        return torch.einsum("nli,loi->nlo", states, self.weight) + self.bias


def fit_alignment(states: Tensor, targets: Tensor) -> Alignment:
    """The map from a trunk's states to another's, by ridge regression, layer by layer.

    ``min_{W, b} mean_rows |W s + b - t|^2 + r |W|^2``, r a thousandth of the mean variance of s.

    Args:
        states: s, ``[N, L, H]`` float32, of rows that both trunks have seen.
        targets: t, of the same rows, ``[N, L, H]`` float32.
    """
    weights, biases = [], []
    for source, target in zip(states.unbind(1), targets.unbind(1), strict=True):
        penalty = RIDGE * len(source) * source.var(dim=0, unbiased=False).mean().item()
        fitted = Ridge(alpha=penalty).fit(source.numpy(), target.numpy())
        weights.append(torch.from_numpy(fitted.coef_))
        biases.append(torch.from_numpy(fitted.intercept_))
    return Alignment(torch.stack(weights).float(), torch.stack(biases).float())
