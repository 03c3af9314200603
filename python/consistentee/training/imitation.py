"""Losses of exits that imitate the full model.

Letters: B rows, L layers, C classes; z_l the logits of exit l, t those of the full model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from consistentee.data.batch import Batch
from consistentee.model.loss import divergence, exit_loss
from consistentee.model.modeling import ConsistentEEOutput
from consistentee_ext.configuration import ConsistentEEConfig


@dataclass(frozen=True)
class ImitationLosses:
    """The losses of `consistentee.training.add_exits.add_exits`.

    A batch has ``teacher [B, C]``, the full model's logits, and may have ``labels``, whose loss is
    added.

    Args:
        config: the model's.
    """

    config: ConsistentEEConfig

    def heads(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Of the heads before the last one, whose trunk stays as it is: the mean over layers."""
        return self._losses(output.exit_logits[:, :-1], batch).mean()

    def trunk(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """Of trunk and all heads, the last one too: the mean over layers."""
        return self._losses(output.exit_logits, batch).mean()

    def policies(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """The binary cross-entropy of ``agrees [B, L]``, which a policy's probability predicts."""
        agrees = batch["agrees"][:, :-1].float()
        return binary_cross_entropy_with_logits(output.policy_logits, agrees)

    def _losses(self, exit_logits: Tensor, batch: Batch) -> Tensor:
        """``[B, E]`` of ``[B, E, C]``."""
        losses = divergence(
            exit_logits, batch["teacher"], self.config.answer_type, self.config.label_std
        )
        if "labels" in batch:
            losses = losses + exit_loss(exit_logits, batch["labels"], self.config.label_std)
        return losses


def standard_deviation(values: Tensor) -> float:
    """Of numbers that an exit is to hit; 1 where they are all alike."""
    deviation = float(torch.std(values.double(), correction=0))
    return deviation or 1.0
