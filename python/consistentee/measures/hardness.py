"""How hard a row is: the first layer that is right, or that is right with all layers above."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.ops.prediction import answers


def correct_layers(exit_logits: Tensor, labels: Tensor, label_std: float = 1.0) -> Tensor:
    """Where a layer's answer is right: ``[N, L]`` bool.

    A class is right if it is the label; a set of labels if it is the same set; a number if its
    error is at most half a standard deviation of the training labels.

    Args:
        exit_logits: ``[N, L, C]``; C is 1 in regression.
        labels: ``[N]``, int64 classes or floating numbers; or ``[N, C]``, 1 for a label of the
            row's set, else 0.
        label_std: of the training labels; regression only.
    """
    if labels.dim() == 2:
        return (answers(exit_logits, multi_label=True) == labels[:, None]).all(dim=-1)
    if labels.is_floating_point():
        return (exit_logits[..., 0] - labels[:, None]).abs() <= label_std / 2
    return exit_logits.argmax(dim=-1) == labels[:, None]


def memorized_layer(correct: Tensor) -> Tensor:
    """The smallest l such that layers l..L are all right; L if the last one is wrong.

    Returns ``[N]`` int64 in 1..L (arXiv 2312.11882).

    Args:
        correct: ``[N, L]``, 1 where a layer's answer is right.
    """
    streak = correct.flip(1).long().cumprod(dim=1).sum(dim=1)  # from the last layer down
    num_layers = correct.shape[1]
    return torch.clamp(num_layers + 1 - streak, max=num_layers)


def oracle_layer(correct: Tensor) -> Tensor:
    """The first right layer, where an oracle would leave; L if no layer is right.

    Returns ``[N]`` int64 in 1..L.

    Args:
        correct: ``[N, L]``, 1 where a layer's answer is right.
    """
    found = torch.cat((correct[:, :-1].bool(), torch.ones_like(correct[:, -1:]).bool()), dim=1)
    return found.int().argmax(dim=1) + 1
