"""The training objective: exit distribution, cost of depth, reward. Pure functions on tensors.

Letters: B rows, L layers, C classes; l in 1..L is an exit layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def exit_log_distribution(policy_logits: Tensor) -> Tensor:
    """Log-probability of each exit layer, ``[B, L]``, in log space throughout.

    ``log P(T = l) = log p_l + sum_{k<l} log(1 - p_k)`` with ``p_l = sigmoid(x_l)`` and ``p_L := 1``
    (arXiv 2312.11882).

    Args:
        policy_logits: x, ``[B, L-1]``.
    """
    certain = policy_logits.new_zeros(policy_logits.shape[0], 1)
    log_exit = torch.cat((logsigmoid(policy_logits), certain), dim=1)
    log_reach = torch.cat((certain, logsigmoid(-policy_logits).cumsum(dim=1)), dim=1)
    return log_exit + log_reach


def exit_entropy(log_distribution: Tensor) -> Tensor:
    """Entropy of a row's exit layer in nats, ``-sum_l P(T = l) log P(T = l)``, ``[B]``.

    Args:
        log_distribution: from `exit_log_distribution`, ``[B, L]``.
    """
    return -(log_distribution.exp() * log_distribution).sum(dim=1)


def error_probability(loss: Tensor) -> Tensor:
    """The probability of a wrong answer, ``1 - exp(-loss_l)``, ``[B, L]`` in 0..1.

    For classes that is ``1 - P_l(y)``: how often a label drawn from layer l's prediction is wrong.

    Args:
        loss: ``[B, L]`` from `exit_loss`.
    """
    return -torch.expm1(-loss)


def depth_cost(alpha: float | Sequence[float] | Tensor, num_layers: int) -> Tensor:
    """The cost of running l layers, ``sum_{k<=l} alpha_k``: ``[L]``, or ``[B, L]``.

    Args:
        alpha: the cost of one layer: a number, a sequence of L, or a tensor ``[B]`` with one for
            each row.
        num_layers: L.
    """
    if isinstance(alpha, Tensor):
        return alpha[:, None] * torch.arange(1, num_layers + 1, device=alpha.device)
    layer_costs = torch.tensor(alpha, dtype=torch.float32)
    return layer_costs.expand(num_layers).cumsum(dim=0)


def exit_reward(loss: Tensor, hardness: Tensor | None, cost: Tensor) -> Tensor:
    """The reward of leaving at each layer: ``R_l = -loss_l - (1 - h/L) * cost_l``, ``[B, L]``.

    Depth costs an easy row (small h) more than a hard one; with h = L it is free. The rewards by
    name: ``hardness``, where h is the Memorized Layer (arXiv 2312.11882); ``oracle``, where it is
    the first right layer; ``plain``, where depth costs every row the same.

    Args:
        loss: of each layer's answer, ``[B, L]``: cross-entropy in the paper.
        hardness: h in 1..L, ``[B]`` int64, see `consistentee.measures.hardness`; None for
            ``plain``.
        cost: from `depth_cost`.
    """
    if hardness is not None:
        cost = (1.0 - hardness / loss.shape[1])[:, None] * cost
    return -loss - cost
