"""The loss of each training phase (arXiv 2312.11882), computed from one pass of the trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from consistentee.data.batch import Batch
from consistentee.model.loss import depth_weighted_loss, divergence, exit_loss
from consistentee.model.modeling import ConsistentEEOutput
from consistentee.training.estimators import Estimate, Estimator
from consistentee.training.objective import (
    depth_cost,
    error_probability,
    exit_entropy,
    exit_log_distribution,
    exit_reward,
)
from consistentee_ext.names import SINGLE_LABEL

Loss = Callable[[ConsistentEEOutput, Batch], Tensor]


@dataclass(frozen=True)
class Losses:
    """The losses of the three phases.

    A batch has ``labels [B]`` and may have

    - ``hardness [B]`` int64 in 1..L, for the reward; without it depth costs every row the same;
    - ``alpha [B]``, one alpha for each row, in place of the model's;
    - ``for_policies [B]`` bool, in phase 3: the rows that policies learn from; without it all.

    Args:
        estimator: of the expected reward, see `consistentee.training.estimators`.
        alpha: the cost of a layer, one number or one for each layer.
        label_std: standard deviation of the training labels, in regression.
        spread: share of a row's loss in phase 3 that is divided equally among all layers.
        entropy_bonus: reward for each nat of the exit distribution's entropy, in units of the
            probability of a wrong answer.
        distillation: in phase 1, what each layer's divergence from the last one's answer weighs
            beside its loss.
        answer_type: the model's, see `consistentee_ext.configuration.answer_type`.
    """

    estimator: Estimator
    alpha: float | Sequence[float]
    label_std: float = 1.0
    spread: float = 0.0
    entropy_bonus: float = 0.0
    distillation: float = 0.0
    answer_type: str = SINGLE_LABEL

    def trunk(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Phase 1: the depth-weighted loss of the classifiers.

        They learn from the labels, and the earlier ones from the last one's answers.
        """
        exit_logits = output.exit_logits
        loss = exit_loss(exit_logits, batch["labels"], self.label_std)
        if self.distillation:
            teacher = exit_logits[:, -1].detach()
            far = divergence(exit_logits, teacher, self.answer_type, self.label_std)
            loss = loss + self.distillation * far
        return depth_weighted_loss(loss)

    def last_layer(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Plain fine-tuning: the loss of the last classifier alone."""
        return exit_loss(output.exit_logits[:, -1:], batch["labels"], self.label_std).mean()

    def policies(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Phase 2: minus the expected reward, in which a layer's loss is its error probability.

        Cross-entropy, which the paper uses, has no bound: a few confident mistakes of the deep
        layers would outweigh their right answers, and the policies would leave too early.

        ``entropy_bonus`` times the entropy of the exits is added to the reward. Without it exit
        probabilities saturate at 0 or 1, and moving the threshold changes nothing.
        """
        loss = exit_loss(output.exit_logits, batch["labels"], self.label_std)
        return self._estimate(output, batch, loss).policy_loss.mean()

    def joint(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Phase 3: the loss of `policies` plus each classifier's loss on the rows that leave at it.

        The classifiers' part is ``sum_l((1 - spread) * P(T = l) + spread / L) * loss_l``. The
        spread keeps every layer usable: a threshold set at run time moves exits to layers where
        few rows leave during training.
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
        cost = depth_cost(alpha, loss.shape[1]).to(loss.device)
        reward = exit_reward(error_probability(loss.detach()), batch.get("hardness"), cost)
        log_distribution = exit_log_distribution(output.policy_logits)
        estimate = self.estimator(log_distribution, reward)
        bonus = self.entropy_bonus * exit_entropy(log_distribution)
        return estimate._replace(policy_loss=estimate.policy_loss - bonus)
