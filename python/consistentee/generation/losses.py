"""The loss of phase 2 for a decoder (arXiv 2312.11882), token by token.

Letters: N tokens that decide, E exits, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee.data.batch import Batch
from consistentee.generation.names import PolicyLoss
from consistentee.generation.passes import PolicyOutput
from consistentee.training.estimators import Estimator
from consistentee.training.objective import (
    error_probability,
    exit_entropy,
    exit_log_distribution,
    exit_reward,
)


@dataclass(frozen=True)
class PolicyObjective:
    """Minus the expected reward of leaving, ``-mean_t sum_l P(e_t = l) R_t(l)``.

    ``R_t(l) = -loss_l - (1 - m_t / L) * alpha * l`` over the exit layers l and L, where the loss is
    the error probability ``1 - P_l(y_t)`` or the cross-entropy ``-log P_l(y_t)``, and m_t the
    token's memorized layer. ``entropy_bonus`` times the entropy of the exits is added.

    Args:
        exit_layers: of the model.
        num_layers: L.
        alpha: the price of a layer for the easiest token.
        estimator: of the gradient, see `consistentee.training.estimators`.
        policy_loss: which of the two losses.
        entropy_bonus: reward for each nat.
    """

    exit_layers: Sequence[int]
    num_layers: int
    alpha: float
    estimator: Estimator
    policy_loss: PolicyLoss
    entropy_bonus: float

    def __call__(self, output: PolicyOutput, batch: Batch) -> Tensor:
        """The loss of a batch, which has ``hardness [B, S]``: at a deciding token its m_t."""
        layers = torch.tensor([*self.exit_layers, self.num_layers], device=output.losses.device)
        hardness = batch["hardness"][output.decides]
        weight = self.alpha * (1.0 - hardness / self.num_layers)
        losses = output.losses
        if self.policy_loss == "error":
            losses = error_probability(losses)
        reward = exit_reward(losses, None, weight[:, None] * layers)
        log_distribution = exit_log_distribution(output.policy_logits.float())
        loss = self.estimator(log_distribution, reward).policy_loss
        return (loss - self.entropy_bonus * exit_entropy(log_distribution)).mean()
