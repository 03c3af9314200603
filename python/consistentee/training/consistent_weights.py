"""The objective of COSEE (arXiv 2412.13236): classifiers learn from the rows that leave near them.

Their scores are taught to tell right answers from wrong ones.

Letters: B rows, L layers, C classes, K thresholds; l in 1..L is an exit layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee.data.batch import Batch
from consistentee.measures.exit_scores import exit_scores
from consistentee.measures.hardness import correct_layers
from consistentee.model.loss import exit_loss
from consistentee.model.modeling import ConsistentEEOutput


@dataclass(frozen=True)
class ConsistentWeights:
    """A loss of phase 1, of classes: ``CE + calibration * OSC``.

    - ``CE`` is the mean over rows and thresholds of ``sum_l(w_l * loss_l)`` with
      ``w_l = softmax_l(-decay * progress * |l - m|)``, m the layer at which the row would leave by
      energy at the threshold, progress the share of the phase's steps that are done.
    - ``OSC`` is the mean over the layers but the last of
      ``max(0, mean score of wrong rows - mean score of right rows + margin)``; 0 for a layer that
      answers all rows of the step alike.

    The thresholds are drawn between the smallest and the largest score of the step's rows. (In the
    paper: between those of the epoch before; of the step they need no memory, so a run that was
    stopped goes on with the same numbers.)

    Args:
        decay: beta in the paper; 0 gives all layers the same weight.
        calibration: alpha in the paper.
        margin: epsilon in the paper.
        thresholds: K.
    """

    decay: float = 0.2
    calibration: float = 0.1
    margin: float = 0.3
    thresholds: int = 5

    def __call__(self, output: ConsistentEEOutput, batch: Batch) -> Tensor:
        """The loss of a step.

        Args:
            output: of the model.
            batch: ``labels [B]`` int64, and ``progress []`` in [0, 1].
        """
        labels = batch["labels"]
        scores = exit_scores("energy", output.exit_logits, output.policy_logits)
        weights = self.weights(scores.detach(), batch["progress"])
        loss = (weights * exit_loss(output.exit_logits, labels)).sum(dim=1).mean()
        right = correct_layers(output.exit_logits, labels)[:, :-1]
        return loss + self.calibration * self.signal_loss(scores, right)

    def weights(self, scores: Tensor, progress: Tensor) -> Tensor:
        """What each layer's loss weighs for each row: ``[B, L]``, a row sums to 1.

        Args:
            scores: ``[B, L-1]``; a row leaves at its first score above a threshold.
            progress: ``[]``.
        """
        low, high = scores.aminmax()
        drawn = torch.rand(self.thresholds, 1, 1, device=scores.device)
        leaves = scores > low + (high - low) * drawn
        last = leaves.new_ones(*leaves.shape[:2], 1)
        exits = torch.cat((leaves, last), dim=-1).int().argmax(dim=-1, keepdim=True)
        layers = torch.arange(scores.shape[1] + 1, device=scores.device)
        distance = (layers - exits).abs()
        return (-self.decay * progress * distance).softmax(dim=-1).mean(dim=0)

    def signal_loss(self, scores: Tensor, right: Tensor) -> Tensor:
        """``OSC``, ``[]``.

        Args:
            scores: ``[B, L-1]``.
            right: ``[B, L-1]`` bool, where a layer's answer is right.
        """
        # At least 1, as a gradient passes through layers that have no rows of one kind.
        of_right = (scores * right).sum(dim=0) / right.sum(dim=0).clamp(min=1)
        of_wrong = (scores * ~right).sum(dim=0) / (~right).sum(dim=0).clamp(min=1)
        gap = (of_wrong - of_right + self.margin).clamp(min=0.0)
        return torch.where(right.all(dim=0) | ~right.any(dim=0), 0.0, gap).mean()
