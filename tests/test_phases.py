from __future__ import annotations

import pytest
import torch

from consistentee.modeling import ConsistentEEOutput
from consistentee.objective import (
    depth_weighted_cross_entropy,
    exact_objective,
    exit_cross_entropy,
    exit_log_distribution,
    hardness_guided_reward,
)
from consistentee.phases import joint_loss, policy_loss, trunk_loss

B, L, C, ALPHA = 4, 3, 2, 0.1
LABELS = torch.tensor([0, 1, 1, 0])
MEMORIZED = torch.tensor([1, 3, 2, 1])
HELD_OUT = torch.tensor([True, False, True, False])


@pytest.fixture
def output() -> ConsistentEEOutput:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, L, C, generator=generator, requires_grad=True)
    policy_logits = torch.randn(B, L - 1, generator=generator, requires_grad=True)
    return ConsistentEEOutput(logits=logits[:, -1], exit_logits=logits, policy_logits=policy_logits)


def expectation(output: ConsistentEEOutput, rows: torch.Tensor) -> torch.Tensor:
    """The exact objective of some rows, over all B."""
    cross_entropy = exit_cross_entropy(output.exit_logits[rows], LABELS[rows])
    reward = hardness_guided_reward(cross_entropy, MEMORIZED[rows], ALPHA)
    log_distribution = exit_log_distribution(output.policy_logits[rows])
    return exact_objective(log_distribution, reward) * rows.sum() / B


def test_trunk_loss_leaves_policies_alone(output):
    loss = trunk_loss(output, {"labels": LABELS})
    assert loss.item() == depth_weighted_cross_entropy(output.exit_logits, LABELS).item()
    loss.backward()
    assert output.policy_logits.grad is None
    assert (output.exit_logits.grad != 0).all()


def test_policy_loss_leaves_classifiers_alone(output):
    loss = policy_loss(output, {"labels": LABELS, "memorized_layer": MEMORIZED}, ALPHA)
    everything = expectation(output, torch.ones(B, dtype=torch.bool))
    assert loss.item() == pytest.approx(everything.item(), rel=1e-6)
    loss.backward()
    assert output.exit_logits.grad is None
    (expected,) = torch.autograd.grad(everything, output.policy_logits)
    torch.testing.assert_close(output.policy_logits.grad, expected)


def test_joint_loss_teaches_policies_on_held_out_rows_alone(output):
    batch = {"labels": LABELS, "memorized_layer": MEMORIZED, "held_out": HELD_OUT}
    joint_loss(output, batch, ALPHA).backward()
    everything = expectation(output, torch.ones(B, dtype=torch.bool))
    (classifiers,) = torch.autograd.grad(everything, output.exit_logits)
    torch.testing.assert_close(output.exit_logits.grad, classifiers)
    (policies,) = torch.autograd.grad(expectation(output, HELD_OUT), output.policy_logits)
    torch.testing.assert_close(output.policy_logits.grad, policies)
    assert (output.policy_logits.grad[~HELD_OUT] == 0).all()
