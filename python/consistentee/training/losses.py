"""The loss of each training phase (arXiv 2312.11882), from one pass of the trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from consistentee.data.batch import Batch
from consistentee.model.loss import depth_weighted_loss, exit_loss
from consistentee.model.modeling import ConsistentEEOutput
from consistentee.training.estimators import Estimate, Estimator
from consistentee.training.objective import (
    depth_price,
    error_probability,
    exit_entropy,
    exit_log_distribution,
    exit_reward,
)

Loss = Callable[[ConsistentEEOutput, Batch], Tensor]


@dataclass(frozen=True)
class Losses:
    """The losses of the three phases; a batch has ``labels [B]`` and, where it matters,

    - ``hardness [B]`` int64 in 1..L, which the reward is guided by; without it depth costs every
      row the same;
    - ``alpha [B]``, the price of a layer drawn for each row, in place of the model's;
    - ``for_policies [B]`` bool, in phase 3: the rows that policies may learn from; without it all.

    Args:
        estimator: of the expected reward, see `consistentee.training.estimators`.
        alpha: the price of a layer, one number or one for each layer.
        label_std: of the training labels, in regression.
        spread: share of a row's loss in phase 3 that all layers have alike.
        entropy_bonus: what a nat of the exit distribution's entropy is worth to policies, in
            probability of a wrong answer.
    """

    estimator: Estimator
    alpha: float | Sequence[float]
    label_std: float = 1.0
    spread: float = 0.0
    entropy_bonus: float = 0.0

    def trunk(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Phase 1: the depth-weighted loss of the classifiers."""
        return depth_weighted_loss(exit_loss(output.exit_logits, batch["labels"], self.label_std))

    def last_layer(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Plain fine-tuning: the loss of the last classifier alone."""
        return exit_loss(output.exit_logits[:, -1:], batch["labels"], self.label_std).mean()

    def policies(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Phase 2: the expected reward, in which an answer costs the probability that it is wrong.

        Cross-entropy in its place has no bound: a few confident mistakes of the deep layers
        outweigh what these get right, and the policies leave too early.

        The entropy of the exits is worth something as well, ``entropy_bonus``: policies that were
        sure of every row would leave a threshold nothing to tell rows apart by.
        """
        loss = exit_loss(output.exit_logits, batch["labels"], self.label_std)
        return self._estimate(output, batch, loss).policy_loss.mean()

    def joint(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Phase 3: `policies`, and each classifier's loss on the rows that leave at it.

        ``sum_l((1 - spread) * P(T = l) + spread / L) * loss_l``: a threshold set at run time moves
        the exits, to layers that the policies alone would let go to waste.
        """
        loss = exit_loss(output.exit_logits, batch["labels"], self.label_std)
        estimate = self._estimate(output, batch, loss)
        policy_loss = estimate.policy_loss
        if "for_policies" in batch:
            policy_loss = policy_loss * batch["for_policies"]
        weights = (1.0 - self.spread) * estimate.exit_weights + self.spread / loss.shape[1]
        return (policy_loss + (weights * loss).sum(dim=1)).mean()

    def _estimate(self, output: ConsistentEEOutput, batch: Batch, loss: Tensor) -> Estimate:
        alpha = batch.get("alpha", self.alpha)
        price = depth_price(alpha, loss.shape[1]).to(loss.device)
        reward = exit_reward(error_probability(loss.detach()), batch.get("hardness"), price)
        log_distribution = exit_log_distribution(output.policy_logits)
        estimate = self.estimator(log_distribution, reward)
        bonus = self.entropy_bonus * exit_entropy(log_distribution)
        return estimate._replace(policy_loss=estimate.policy_loss - bonus)
