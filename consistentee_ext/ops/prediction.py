"""What logits say: the answer, and how sure it is.

A model answers with one of C classes, or, where its labels are independent (``multi_label``), with
the set of those whose sigmoid is above 0.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUM_STATISTICS = 5


def answers(logits: Tensor, multi_label: bool = False) -> Tensor:
    """The class of the highest logit, ``[..., C]`` to ``[...]`` int64.

    Of independent labels the set, ``[..., C]`` int64: 1 where ``sigmoid(z) > 0.5``, which is
    ``z > 0``, else 0.
    """
    return (logits > 0).long() if multi_label else logits.argmax(dim=-1)


def no_answers(logits: Tensor, multi_label: bool = False) -> Tensor:
    """What stands in place of answers where there were none, and agrees with none: -1."""
    return torch.full_like(answers(logits, multi_label), -1)


def prediction_statistics(logits: Tensor, previous: Tensor, multi_label: bool = False) -> Tensor:
    """What a policy may know of a prediction, ``[B, 5]``.

    Columns: top probability; its margin to the second; ``1 - entropy / log(C)``; margin between the
    two top logits; 1 where the answer is that of the exit layer before, else 0. With one class the
    margins are 0 and the others as if certain.

    A set of independent labels is as sure as its least sure label. The first four columns are those
    of this label as two classes with the logits ``min |z|`` and 0: ``min max(p, 1 - p)`` with
    ``p = sigmoid(z)``; twice it less 1; 1 less the largest binary entropy in bits; ``min |z|``.

    Args:
        logits: z, ``[B, C]`` float32.
        previous: the exit layer before's `answers`; -1 where there were none.
        multi_label: whether labels are independent.
    """
    agreement = answers(logits, multi_label) == previous
    if multi_label:
        agreement = agreement.all(dim=-1)
        least = logits.abs().amin(dim=-1)
        logits = torch.stack((least, torch.zeros_like(least)), dim=-1)
    probability = logits.softmax(dim=-1)
    if logits.shape[-1] == 1:
        margin = logit_margin = torch.zeros_like(logits[:, 0])
        certainty = torch.ones_like(margin)
    else:
        top = probability.topk(2, dim=-1).values
        top_logits = logits.topk(2, dim=-1).values
        margin = top[:, 0] - top[:, 1]
        logit_margin = top_logits[:, 0] - top_logits[:, 1]
        entropy = -(probability * logits.log_softmax(dim=-1)).sum(dim=-1)
        certainty = 1.0 - entropy / math.log(logits.shape[-1])
    columns = (probability.amax(dim=-1), margin, certainty, logit_margin, agreement)
    return torch.stack([column.to(logits.dtype) for column in columns], dim=-1)
