from __future__ import annotations

import pytest
import torch

from consistentee.modeling import ConsistentEEOutput
from consistentee.objective import depth_weighted_cross_entropy
from consistentee.phases import exact_loss, trunk_loss

B, L, C, ALPHA = 4, 3, 2, 0.1
LABELS = torch.tensor([0, 1, 1, 0])
MEMORIZED = torch.tensor([1, 3, 2, 1])


@pytest.fixture
def output() -> ConsistentEEOutput:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, L, C, generator=generator, requires_grad=True)
    policy_logits = torch.randn(B, L - 1, generator=generator, requires_grad=True)
    return ConsistentEEOutput(logits=logits[:, -1], exit_logits=logits, policy_logits=policy_logits)


def test_trunk_loss_leaves_policies_alone(output):
    loss = trunk_loss(output, {"labels": LABELS})
    assert loss.item() == depth_weighted_cross_entropy(output.exit_logits, LABELS).item()
    loss.backward()
    assert output.policy_logits.grad is None
    assert (output.exit_logits.grad != 0).all()


def test_exact_loss_is_the_expectation_in_classifiers_and_policies(output):
    loss = exact_loss(output, {"labels": LABELS, "memorized_layer": MEMORIZED}, ALPHA)
    loss.backward()
    expected = 0.0
    for row in range(B):
        stay = torch.tensor(1.0)
        for layer in range(L):
            chance = output.policy_logits[row, layer].sigmoid() if layer < L - 1 else 1.0
            price = ALPHA * (1 - MEMORIZED[row] / L) * (layer + 1)
            cross_entropy = -output.exit_logits[row, layer].log_softmax(-1)[LABELS[row]]
            expected = expected + stay * chance * (cross_entropy + price) / B
            stay = stay * (1 - chance)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    leaves = (output.exit_logits, output.policy_logits)
    for leaf, gradient in zip(leaves, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(leaf.grad, gradient)
