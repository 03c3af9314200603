"""Two estimators of the expected reward's gradient; each needs one forward pass of the trunk.

The trunk of an encoder does not depend on the exits: one pass gives every layer's logits and
policy. The expectation over exit layers is then a sum of L terms, and samples of exit layers can
all be drawn from the same pass.

Letters: B rows, L layers, K samples.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from consistentee.training.names import ESTIMATORS


class Estimate(NamedTuple):
    """An estimator's result for B rows.

    Attributes:
        policy_loss: ``[B]``; its gradient equals that of ``-sum_l P(T = l) * R_l``, exactly or in
            expectation.
        exit_weights: ``[B, L]``, without gradient: the weight of each layer's classifier, in
            expectation ``P(T = l)``.
    """

    policy_loss: Tensor
    exit_weights: Tensor


class Estimator(Protocol):
    """From ``log P(T = l)`` and a reward without gradient, both ``[B, L]``, to an `Estimate`."""

    def __call__(self, log_distribution: Tensor, reward: Tensor) -> Estimate:
        """Estimate from ``[B, L]`` and ``[B, L]``."""
        ...


def exact(log_distribution: Tensor, reward: Tensor) -> Estimate:
    """The expectation itself: ``-sum_l P(T = l) * R_l``, no sampling and no variance."""
    distribution = log_distribution.exp()
    return Estimate(-(distribution * reward).sum(dim=1), distribution.detach())


class Reinforce:
    """``-mean_k w_k * (R(t_k) - b_k) * log P(T = t_k)`` over K sampled exit layers.

    ``b_k`` is the mean reward of the other samples. Compared with the mean of all K (arXiv
    2312.11882) the gradient is ``K / (K - 1)`` times as large, and unbiased; a single sample has no
    baseline. With epsilon above 0 layers are drawn from ``Q = (1 - epsilon) * P + epsilon / L``, so
    that exits of low probability are still tried; the importance weight ``w = P / Q`` (without
    gradient) keeps the estimate unbiased. Otherwise w is 1.

    Args:
        samples: K, at least 1.
        epsilon: share of the draws that are uniform over layers, in [0, 1).

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, samples: int = 8, epsilon: float = 0.0) -> None:
        if samples < 1:
            raise ValueError(f"samples: expected at least 1, got {samples}")
        if not 0.0 <= epsilon < 1.0:
            raise ValueError(f"epsilon: expected a share in [0, 1), got {epsilon}")
        self.samples = samples
        self.epsilon = epsilon

    def __call__(self, log_distribution: Tensor, reward: Tensor) -> Estimate:
        """Estimate from ``[B, L]`` and ``[B, L]``, with samples drawn anew."""
        num_layers = log_distribution.shape[1]
        distribution = log_distribution.detach().exp()
        proposal = (1.0 - self.epsilon) * distribution + self.epsilon / num_layers
        drawn = torch.multinomial(proposal, self.samples, replacement=True)  # [B, K]
        weight = (distribution / proposal).gather(1, drawn)
        sampled = reward.gather(1, drawn)
        baseline = torch.zeros_like(sampled)
        if self.samples > 1:
            baseline = (sampled.sum(dim=1, keepdim=True) - sampled) / (self.samples - 1)
        gain = weight * (sampled - baseline)
        policy_loss = -(gain * log_distribution.gather(1, drawn)).mean(dim=1)
        counts = torch.zeros_like(distribution).scatter_add_(1, drawn, weight)
        return Estimate(policy_loss, counts / self.samples)


def build_estimator(name: str, samples: int, epsilon: float) -> Estimator:
    """The estimator of a name in `ESTIMATORS`."""
    if name not in ESTIMATORS:
        raise ValueError(f"estimator: expected one of {ESTIMATORS}, got {name!r}")
    reinforce = Reinforce(samples, epsilon)  # raises
    return exact if name == "exact" else reinforce
