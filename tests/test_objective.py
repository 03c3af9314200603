from __future__ import annotations

import itertools
import math

import pytest
import torch

from consistentee.objective import (
    depth_weighted_cross_entropy,
    error_probability,
    exact_objective,
    exit_cross_entropy,
    exit_log_distribution,
    hardness_guided_reward,
)

B, L, C = 5, 4, 3


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cross_entropy_of_each_layer():
    logits, labels = draw(B, L, C), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(logits[:, layer], labels, reduction="none")
            for layer in range(L)
        ],
        dim=1,
    )
    torch.testing.assert_close(exit_cross_entropy(logits, labels), expected)


def test_depth_weighted_cross_entropy_by_hand():
    # Two layers: wrong by odds of 3 to 1 at the first, right by the same odds at the last.
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(3.0)]]], dtype=torch.float64)
    expected = (1 * math.log(4.0) + 2 * math.log(4.0 / 3.0)) / 3
    loss = depth_weighted_cross_entropy(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_exit_distribution_against_enumeration():
    """P(T = l) summed over every sequence of coin flips whose first exit is l."""
    logits = draw(B, L - 1)
    chance = logits.sigmoid()
    expected = torch.zeros(B, L, dtype=torch.float64)
    for flips in itertools.product((0, 1), repeat=L - 1):
        layer = flips.index(1) if 1 in flips else L - 1
        for row in range(B):
            expected[row, layer] += math.prod(
                p if flip else 1 - p for flip, p in zip(flips, chance[row].tolist(), strict=True)
            )
    torch.testing.assert_close(exit_log_distribution(logits).exp(), expected)


def test_exit_distribution_of_certain_policies_is_finite():
    logits = torch.tensor([[-200.0, 200.0, 0.0], [200.0, 0.0, 0.0]])
    log_distribution = exit_log_distribution(logits)
    assert torch.isfinite(log_distribution).all()
    torch.testing.assert_close(
        log_distribution.exp(), torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    )


def test_one_layer_exits_there():
    assert exit_log_distribution(torch.zeros(2, 0)).tolist() == [[0.0], [0.0]]


def test_error_probability():
    cross_entropy = torch.tensor([[0.0, math.log(2.0), math.log(4.0), 200.0]])
    expected = torch.tensor([[0.0, 0.5, 0.75, 1.0]])
    torch.testing.assert_close(error_probability(cross_entropy), expected)


def test_reward_by_hand():
    loss = torch.tensor([[1.0, 0.5, 0.25, 0.0], [2.0, 2.0, 2.0, 2.0]])
    reward = hardness_guided_reward(loss, torch.tensor([1, 4]), alpha=0.4)
    # Row 0 pays 0.4 * (1 - 1/4) = 0.3 a layer, row 1, memorized at the last, nothing.
    expected = torch.tensor([[-1.3, -1.1, -1.15, -1.2], [-2.0, -2.0, -2.0, -2.0]])
    torch.testing.assert_close(reward, expected)


def test_objective_is_the_expected_loss():
    policy_logits, reward = draw(B, L - 1), draw(B, L, seed=1)
    chance = policy_logits.sigmoid()
    expected = 0.0
    for row in range(B):
        stay = 1.0
        for layer in range(L):
            leave = chance[row, layer].item() if layer < L - 1 else 1.0
            expected -= stay * leave * reward[row, layer].item() / B
            stay *= 1 - leave
    objective = exact_objective(exit_log_distribution(policy_logits), reward)
    assert objective.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_that_of_reinforce():
    """grad J = -mean over rows of E[R * grad log P(T)], and -P(T = l) / B for each reward."""
    policy_logits = draw(B, L - 1).requires_grad_()
    reward = draw(B, L, seed=1).requires_grad_()
    exact_objective(exit_log_distribution(policy_logits), reward).backward()
    expected = torch.zeros(B, L - 1, dtype=torch.float64)
    for layer in range(L):
        leaf = policy_logits.detach().clone().requires_grad_()
        log_p = exit_log_distribution(leaf)[:, layer]
        log_p.sum().backward()
        weight = log_p.exp() * reward[:, layer] / B
        expected -= weight.detach()[:, None] * leaf.grad
    torch.testing.assert_close(policy_logits.grad, expected)
    torch.testing.assert_close(
        reward.grad, -exit_log_distribution(policy_logits).exp().detach() / B
    )
