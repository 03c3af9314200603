"""The losses of a model's answers: of each exit, and of all of them by depth.

Letters: B rows, L layers, C classes; l in 1..L is an exit layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div

from consistentee_ext.names import MULTI_LABEL, REGRESSION


def exit_loss(exit_logits: Tensor, labels: Tensor, label_std: float = 1.0) -> Tensor:
    """The loss of each layer's answer, ``[B, L]``.

    Of a class ``CE_l = -log softmax(z_l)[y]``; of a number its squared error in units of the
    labels' variance, ``((z_l - y) / std)^2``; of a set of labels ``-log P_l(y)``, the sum over
    labels of the binary cross-entropies.

    Args:
        exit_logits: z, ``[B, L, C]``; C is 1 in regression.
        labels: y, ``[B]``, int64 classes or floating numbers; or ``[B, C]`` floating, 1 for a label
            of the row's set, else 0.
        label_std: std, of the training labels; regression only.
    """
    if labels.dim() == 2:
        targets = labels[:, None].to(exit_logits.dtype).expand_as(exit_logits)
        losses = binary_cross_entropy_with_logits(exit_logits, targets, reduction="none")
        return losses.sum(dim=-1)
    if labels.is_floating_point():
        return ((exit_logits[..., 0] - labels[:, None]) / label_std).square()
    log_probability = exit_logits.log_softmax(dim=-1)
    index = labels[:, None, None].expand(-1, exit_logits.shape[1], 1)
    return -log_probability.gather(-1, index).squeeze(-1)


def divergence(
    exit_logits: Tensor, teacher: Tensor, answer_type: str, label_std: float = 1.0
) -> Tensor:
    """How far each exit's answer is from a teacher's, ``[B, L]``.

    Of classes ``KL(softmax(t) || softmax(z_l))``; of sets of labels the sum over labels of the
    divergence of the two Bernoulli distributions; of numbers ``((z_l - t) / std)^2``.

    Args:
        exit_logits: z, ``[B, L, C]``.
        teacher: t, ``[B, C]``.
        answer_type: see `consistentee_ext.configuration.answer_type`.
        label_std: std; regression only.
    """
    expected = teacher[:, None].expand_as(exit_logits)
    if answer_type == REGRESSION:
        return ((exit_logits - expected) / label_std).square().squeeze(-1)
    if answer_type == MULTI_LABEL:
        p = expected.sigmoid()
        entropy = binary_cross_entropy_with_logits(expected, p, reduction="none")
        cross = binary_cross_entropy_with_logits(exit_logits, p, reduction="none")
        return (cross - entropy).sum(dim=-1)
    log_z, log_t = exit_logits.log_softmax(dim=-1), expected.log_softmax(dim=-1)
    return kl_div(log_z, log_t, reduction="none", log_target=True).sum(dim=-1)


def depth_weighted_loss(loss: Tensor) -> Tensor:
    """The mean over rows of ``sum_l(l * loss_l) / sum_l(l)`` (phase 1 of arXiv 2312.11882).

    Args:
        loss: ``[B, L]`` from `exit_loss`.
    """
    depth = torch.arange(1, loss.shape[1] + 1, device=loss.device, dtype=loss.dtype)
    return (loss @ (depth / depth.sum())).mean()
