"""Where rows would leave: the scores of every exit criterion, from one pass at full depth.

The engine computes the same scores layer by layer, for the rows that have not left. Here all layers
are known, so that many thresholds can be tried without another pass.

Letters: N rows, L layers, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.criteria import SCORES, Prediction, check_criterion
from consistentee_ext.ops.prediction import answers, no_answers, prediction_statistics


def prediction_features(exit_logits: Tensor, multi_label: bool = False) -> Tensor:
    """`prediction_statistics` of each layer, ``[N, L, 5]``; agreement is with the layer before.

    Args:
        exit_logits: ``[N, L, C]``.
        multi_label: whether labels are independent.
    """
    before = [no_answers(exit_logits[:, 0], multi_label)]
    before += answers(exit_logits, multi_label).unbind(dim=1)
    layers = zip(exit_logits.unbind(dim=1), before, strict=False)
    return torch.stack([prediction_statistics(*layer, multi_label) for layer in layers], dim=1)


def exit_scores(
    criterion: str, exit_logits: Tensor, policy_logits: Tensor, multi_label: bool = False
) -> Tensor:
    """The score of every row at every layer except the last, where all rows leave: ``[N, L-1]``.

    The formulas are `consistentee_ext.criteria.SCORES`, for a model with an exit on every layer.

    Args:
        criterion: one of `consistentee_ext.criteria.CRITERIA`.
        exit_logits: ``[N, L, C]``.
        policy_logits: ``[N, L-1]``.
        multi_label: whether labels are independent.

    Raises:
        ValueError: a criterion that independent labels have not.
    """
    check_criterion(criterion, multi_label)
    statistics = prediction_features(exit_logits, multi_label)[:, :-1]
    prediction = Prediction(
        logits=exit_logits[:, :-1],
        statistics=statistics,
        streak=agreement_streak(statistics[..., 4]),
        max_streak=statistics.shape[1],
        exit_probability=policy_logits.sigmoid,
    )
    return SCORES[criterion](prediction)


def agreement_streak(agreement: Tensor) -> Tensor:
    """The number of consecutive layers, up to each, that agree with the layer before them.

    From 0/1 ``[N, E]`` to ``[N, E]``.
    """
    streaks = []
    streak = torch.zeros_like(agreement[:, 0]) if agreement.shape[1] else agreement
    for agrees in agreement.unbind(dim=1):
        streak = (streak + 1) * agrees
        streaks.append(streak)
    return torch.stack(streaks, dim=1) if streaks else agreement


def leave_at(scores: Tensor, threshold: float) -> Tensor:
    """The layer each row leaves at, the first with a score above `threshold`.

    Returns ``[N]`` int64 in 1..L.

    Args:
        scores: ``[N, L-1]``.
        threshold: in the range of the scores.
    """
    leaves = scores > threshold
    last = leaves.new_ones(len(leaves), 1)
    return torch.cat((leaves, last), dim=1).int().argmax(dim=1) + 1


def at_exit(values: Tensor, exit_layers: Tensor) -> Tensor:
    """The value of each row at the layer it leaves at.

    From ``[N, L, ...]`` and ``[N]`` to ``[N, ...]``.
    """
    return values[torch.arange(len(values), device=values.device), exit_layers - 1]
