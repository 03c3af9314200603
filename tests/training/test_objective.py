"""Losses of each layer and the distribution of exits, by hand and by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from consistentee.model.loss import depth_weighted_loss, exit_loss
from consistentee.training.objective import (
    depth_cost,
    error_probability,
    exit_entropy,
    exit_log_distribution,
    exit_reward,
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
    torch.testing.assert_close(exit_loss(logits, labels), expected)


def test_squared_error_of_each_layer_in_units_of_the_variance():
    logits = torch.tensor([[[1.0], [3.0]], [[0.0], [-2.0]]])
    loss = exit_loss(logits, torch.tensor([2.0, 4.0]), label_std=2.0)
    torch.testing.assert_close(loss, torch.tensor([[0.25, 0.25], [4.0, 9.0]]))


def test_the_loss_of_a_set_is_minus_the_logarithm_of_its_probability():
    """The product over labels, and so the error is the probability of another set."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, generator=generator)
    labels = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    p = logits.double().sigmoid()
    chosen = torch.where(labels[:, None].bool(), p, 1 - p).prod(dim=-1)
    loss = exit_loss(logits, labels)
    torch.testing.assert_close(loss, -chosen.log().float())
    torch.testing.assert_close(error_probability(loss), (1 - chosen).float())
    # Hugging Face's loss is the mean over rows and labels.
    expected = torch.nn.BCEWithLogitsLoss()(logits[:, -1], labels)
    torch.testing.assert_close(loss[:, -1].mean() / 4, expected)


def test_depth_weighted_loss_by_hand():
    # Two layers: wrong by odds of 3 to 1 at the first, right by the same odds at the last.
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(3.0)]]], dtype=torch.float64)
    expected = (1 * math.log(4.0) + 2 * math.log(4.0 / 3.0)) / 3
    loss = depth_weighted_loss(exit_loss(logits, torch.tensor([1])))
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


def test_price_of_depth():
    torch.testing.assert_close(depth_cost(0.5, 3), torch.tensor([0.5, 1.0, 1.5]))
    torch.testing.assert_close(depth_cost([0.5, 0.0, 2.0], 3), torch.tensor([0.5, 0.5, 2.5]))
    each = depth_cost(torch.tensor([0.5, 1.0]), 3)
    torch.testing.assert_close(each, torch.tensor([[0.5, 1.0, 1.5], [1.0, 2.0, 3.0]]))


def test_reward_by_hand():
    loss = torch.tensor([[1.0, 0.5, 0.25, 0.0], [2.0, 2.0, 2.0, 2.0]])
    price = depth_cost(0.4, 4)
    # Row 0 pays 0.4 * (1 - 1/4) = 0.3 a layer, row 1, memorized at the last, nothing.
    guided = torch.tensor([[-1.3, -1.1, -1.15, -1.2], [-2.0, -2.0, -2.0, -2.0]])
    torch.testing.assert_close(exit_reward(loss, torch.tensor([1, 4]), price), guided)
    plain = torch.tensor([[-1.4, -1.3, -1.45, -1.6], [-2.4, -2.8, -3.2, -3.6]])
    torch.testing.assert_close(exit_reward(loss, None, price), plain)


def test_entropy_is_that_of_the_distribution():
    log_distribution = exit_log_distribution(draw(B, L - 1))
    expected = torch.distributions.Categorical(logits=log_distribution).entropy()
    torch.testing.assert_close(exit_entropy(log_distribution), expected)
    decided = exit_log_distribution(torch.full((1, L - 1), 1e4))
    assert exit_entropy(decided).item() == 0.0
