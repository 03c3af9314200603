"""What training optimises: pure functions on tensors.

Letters: B rows, L layers, C classes; l in 1..L is an exit layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def exit_cross_entropy(exit_logits: Tensor, labels: Tensor) -> Tensor:
    """``CE_l = -log softmax(z_l)[y]`` of each layer: ``[B, L]``.

    Args:
        exit_logits: z, ``[B, L, C]``.
        labels: y, ``[B]`` int64.
    """
    log_probability = exit_logits.log_softmax(dim=-1)
    index = labels[:, None, None].expand(-1, exit_logits.shape[1], 1)
    return -log_probability.gather(-1, index).squeeze(-1)


def depth_weighted_cross_entropy(exit_logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over rows of ``sum_l(l * CE_l) / sum_l(l)`` (phase 1 of arXiv
    2312.11882).

    Args:
        exit_logits: ``[B, L, C]``.
        labels: ``[B]`` int64.
    """
    num_layers = exit_logits.shape[1]
    depth = torch.arange(1, num_layers + 1, device=exit_logits.device, dtype=exit_logits.dtype)
    return (exit_cross_entropy(exit_logits, labels) @ (depth / depth.sum())).mean()


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


def error_probability(cross_entropy: Tensor) -> Tensor:
    """``1 - P_l(y) = 1 - exp(-CE_l)``: how often a label drawn from layer l's prediction is wrong.

    Args:
        cross_entropy: ``[B, L]``.
    """
    return -torch.expm1(-cross_entropy)


def hardness_guided_reward(loss: Tensor, memorized_layer: Tensor, alpha: float) -> Tensor:
    """What leaving at each layer is worth: ``R_l = -loss_l - alpha * (1 - m/L) * l``, ``[B, L]``.

    Depth costs an easy row (small m) more than a hard one; a row memorized at the last layer alone
    runs for free (arXiv 2312.11882).

    Args:
        loss: what a layer's answer costs, ``[B, L]``: cross-entropy in the paper.
        memorized_layer: m in 1..L, ``[B]`` int64, see `consistentee.hardness`.
        alpha: the price of a layer, at least 0.
    """
    num_layers = loss.shape[1]
    layer = torch.arange(1, num_layers + 1, device=loss.device)
    price = alpha * (1.0 - memorized_layer / num_layers)
    return -loss - price[:, None] * layer


def exact_objective(log_distribution: Tensor, reward: Tensor) -> Tensor:
    """The expected reward as a loss: the mean over rows of ``-sum_l P(T = l) * R_l``.

    Its gradient is the one REINFORCE estimates by sampling, without the variance. Gradients flow
    into both arguments: detach the reward to train policies alone.

    Args:
        log_distribution: ``log P(T = l)``, ``[B, L]``.
        reward: ``[B, L]``.
    """
    return -(log_distribution.exp() * reward).sum(dim=1).mean()
