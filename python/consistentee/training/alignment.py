"""Maps the states of one trunk to those of another, so that both can use the same policies.

Two trunks that start from the same weights and share most of their training rows end with states
that differ mainly by an affine map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.linear_model import Ridge
from torch import Tensor

RIDGE = 1e-3  # share of a feature's variance: few hundred rows must determine H x H numbers


class Alignment(NamedTuple):
    """The affine map of each layer: ``weight [L, H, H]``, ``bias [L, H]``."""

    weight: Tensor
    bias: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """``weight_l s + bias_l`` of states s, ``[N, L, H]``."""
        return torch.einsum("nli,loi->nlo", states, self.weight) + self.bias


def fit_alignment(states: Tensor, targets: Tensor) -> Alignment:
    """Fit the map from one trunk's states to another's by ridge regression, layer by layer.

    ``min_{W, b} mean_rows |W s + b - t|^2 + r |W|^2``, r a thousandth of the mean variance of s.

    Args:
        states: s, ``[N, L, H]`` float32, of rows that both trunks were trained on.
        targets: t, the other trunk's states of the same rows, ``[N, L, H]`` float32.
    """
    weights, biases = [], []
    for source, target in zip(states.unbind(1), targets.unbind(1), strict=True):
        penalty = RIDGE * len(source) * source.var(dim=0, unbiased=False).mean().item()
        fitted = Ridge(alpha=penalty).fit(source.numpy(), target.numpy())
        weights.append(torch.from_numpy(fitted.coef_))
        biases.append(torch.from_numpy(fitted.intercept_))
    return Alignment(torch.stack(weights).float(), torch.stack(biases).float())
