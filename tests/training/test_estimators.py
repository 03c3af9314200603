"""The gradient estimators against the exact gradient."""

from __future__ import annotations

import pytest
import torch

from consistentee.training.estimators import Reinforce, build_estimator, exact
from consistentee.training.objective import exit_log_distribution

B, L = 5, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_exact_is_the_expected_loss():
    policy_logits, reward = draw(B, L - 1), draw(B, L, seed=1)
    chance = policy_logits.sigmoid()
    expected = []
    for row in range(B):
        stay, total = 1.0, 0.0
        for layer in range(L):
            leave = chance[row, layer].item() if layer < L - 1 else 1.0
            total -= stay * leave * reward[row, layer].item()
            stay *= 1 - leave
        expected.append(total)
    log_distribution = exit_log_distribution(policy_logits)
    estimate = exact(log_distribution, reward)
    assert estimate.policy_loss.tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(estimate.exit_weights, log_distribution.exp())
    assert not estimate.exit_weights.requires_grad


def gradient_by_definition(policy_logits: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    """``-E[R * grad log P(T)]``, one exit layer after the other."""
    expected = torch.zeros_like(policy_logits)
    for layer in range(L):
        leaf = policy_logits.clone().requires_grad_()
        log_p = exit_log_distribution(leaf)[:, layer]
        log_p.sum().backward()
        assert leaf.grad is not None
        expected -= (log_p.exp() * reward[:, layer]).detach()[:, None] * leaf.grad
    return expected


def test_gradient_of_exact_is_the_policy_gradient():
    policy_logits, reward = draw(B, L - 1).requires_grad_(), draw(B, L, seed=1)
    exact(exit_log_distribution(policy_logits), reward).policy_loss.sum().backward()
    expected = gradient_by_definition(policy_logits.detach(), reward)
    torch.testing.assert_close(policy_logits.grad, expected)


@pytest.mark.parametrize(("samples", "epsilon"), [(1, 0.0), (2, 0.0), (8, 0.0), (8, 0.3), (3, 0.5)])
def test_mean_gradient_of_reinforce_converges_to_the_exact_one(samples, epsilon):
    """Over n runs the mean's error must fall as its standard error, which n also shrinks."""
    policy_logits, reward = draw(B, L - 1), draw(B, L, seed=1)
    expected = gradient_by_definition(policy_logits, reward)
    runs = 40_000 // samples
    leaf = policy_logits.repeat(runs, 1).requires_grad_()
    torch.manual_seed(0)
    estimate = Reinforce(samples, epsilon)(exit_log_distribution(leaf), reward.repeat(runs, 1))
    estimate.policy_loss.sum().backward()
    gradients = leaf.grad.view(runs, B, L - 1)
    standard_error = gradients.std(dim=0) / runs**0.5
    assert ((gradients.mean(dim=0) - expected).abs() < 4.5 * standard_error).all()
    # As close as that means something: against the gradients' own size it is nothing.
    assert standard_error.max() < 0.05 * expected.abs().max()
    weights = estimate.exit_weights.view(runs, B, L).mean(dim=0)
    distribution = exit_log_distribution(policy_logits).exp()
    torch.testing.assert_close(weights, distribution, atol=0.02, rtol=0)


def test_the_baseline_takes_variance_away():
    policy_logits, reward = draw(B, L - 1), draw(B, L, seed=1) - 10.0

    def variance(samples: int) -> float:
        leaf = policy_logits.repeat(4000, 1).requires_grad_()
        torch.manual_seed(0)
        loss = Reinforce(samples)(exit_log_distribution(leaf), reward.repeat(4000, 1)).policy_loss
        loss.sum().backward()
        return leaf.grad.view(4000, B, L - 1).var(dim=0).mean().item()

    assert variance(2) < variance(1) / 10  # one sample has none; two average only half of it away


def test_exploration_draws_layers_that_policies_have_given_up(monkeypatch):
    drawn: list[torch.Tensor] = []
    multinomial = torch.multinomial

    def recorded(*args, **kwargs):
        drawn.append(multinomial(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(torch, "multinomial", recorded)
    certain = exit_log_distribution(torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True))
    torch.manual_seed(0)
    for epsilon, layers in ((0.0, {0}), (0.4, {0, 1, 2, 3})):
        estimate = Reinforce(64, epsilon)(certain, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
        assert set(drawn[-1].flatten().tolist()) == layers
        assert torch.isfinite(estimate.policy_loss).all()
        assert torch.isfinite(estimate.exit_weights).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exact?", 8, 0.0), "estimator: expected one of .*, got 'exact\\?'"),
        (("reinforce", 0, 0.0), "samples: expected at least 1, got 0"),
        (("reinforce", 8, 1.0), r"epsilon: expected a share in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build_estimator(*arguments)
