"""Losses of exits that imitate the full model.

Letters: B rows, L layers, C classes; z_l the logits of exit l, t those of the full model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div

from consistentee.data.batch import Batch
from consistentee.model.loss import exit_loss
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
        losses = divergence(exit_logits, batch["teacher"], self.config)
        if "labels" in batch:
            losses = losses + exit_loss(exit_logits, batch["labels"], self.config.label_std)
        return losses


def divergence(exit_logits: Tensor, teacher: Tensor, config: ConsistentEEConfig) -> Tensor:
    """How far each exit's answer is from the full model's, ``[B, L]``.

    Of classes ``KL(softmax(t) || softmax(z_l))``; of sets of labels the sum over labels of the
    divergence of the two Bernoulli distributions; of numbers ``((z_l - t) / std)^2``.

    Args:
        exit_logits: z, ``[B, L, C]``.
        teacher: t, ``[B, C]``.
        config: the model's; its ``label_std`` is std.
    """
    expected = teacher[:, None].expand_as(exit_logits)
    if config.regression:
        return ((exit_logits - expected) / config.label_std).square().squeeze(-1)
    if config.multi_label:
        p = expected.sigmoid()
        entropy = binary_cross_entropy_with_logits(expected, p, reduction="none")
        cross = binary_cross_entropy_with_logits(exit_logits, p, reduction="none")
        return (cross - entropy).sum(dim=-1)
    log_z, log_t = exit_logits.log_softmax(dim=-1), expected.log_softmax(dim=-1)
    return kl_div(log_z, log_t, reduction="none", log_target=True).sum(dim=-1)


def standard_deviation(values: Tensor) -> float:
    """Of numbers that an exit is to hit; 1 where they are all alike."""
    deviation = float(torch.std(values.double(), correction=0))
    return deviation or 1.0
