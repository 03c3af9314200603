"""The losses of the phases against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from consistentee.model.loss import depth_weighted_loss, exit_loss
from consistentee.model.modeling import ConsistentEEOutput
from consistentee.training.estimators import Reinforce, exact
from consistentee.training.losses import Losses
from consistentee.training.objective import exit_log_distribution

B, L, C, ALPHA = 4, 3, 2, 0.1
LABELS = torch.tensor([0, 1, 1, 0])
MEMORIZED = torch.tensor([1, 3, 2, 1])
BATCH = {"labels": LABELS, "hardness": MEMORIZED}
LOSSES = Losses(exact, ALPHA)


@pytest.fixture
def output() -> ConsistentEEOutput:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, L, C, generator=generator, requires_grad=True)
    policy_logits = torch.randn(B, L - 1, generator=generator, requires_grad=True)
    return ConsistentEEOutput(logits=logits[:, -1], exit_logits=logits, policy_logits=policy_logits)


def test_trunk_loss_leaves_policies_alone(output):
    loss = LOSSES.trunk(output, {"labels": LABELS})
    assert loss.item() == depth_weighted_loss(exit_loss(output.exit_logits, LABELS)).item()
    loss.backward()
    assert output.policy_logits.grad is None
    assert (output.exit_logits.grad != 0).all()


def by_hand(output: ConsistentEEOutput, costs: list[list[torch.Tensor]]) -> torch.Tensor:
    """The mean over rows of sum_l P(T = l) * costs[row][l], one coin flip after the other."""
    expected = torch.tensor(0.0)
    for row in range(B):
        stay = torch.tensor(1.0)
        for layer in range(L):
            chance = output.policy_logits[row, layer].sigmoid() if layer < L - 1 else 1.0
            expected = expected + stay * chance * costs[row][layer] / B
            stay = stay * (1 - chance)
    return expected


def test_policy_loss_is_the_expected_error_and_price_of_depth(output):
    loss = LOSSES.policies(output, BATCH)
    loss.backward()
    probability = output.exit_logits.detach().softmax(-1)
    price = ALPHA * (1 - MEMORIZED / L)
    costs = [
        [1 - probability[row, layer, LABELS[row]] + price[row] * (layer + 1) for layer in range(L)]
        for row in range(B)
    ]
    expected = by_hand(output, costs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(expected, output.policy_logits)
    torch.testing.assert_close(output.policy_logits.grad, gradient)
    assert output.exit_logits.grad is None


def test_joint_loss_adds_the_cross_entropy_of_the_classifier_at_the_exit(output):
    loss = LOSSES.joint(output, BATCH)
    loss.backward()
    log_probability = output.exit_logits.log_softmax(-1)
    costs = [[-log_probability[row, layer, LABELS[row]] for layer in range(L)] for row in range(B)]
    expected = by_hand(output, costs)
    of_policies = LOSSES.policies(output, BATCH)
    assert loss.item() == pytest.approx((expected + of_policies).item(), rel=1e-6)
    (of_classifiers,) = torch.autograd.grad(expected, output.exit_logits, retain_graph=True)
    torch.testing.assert_close(output.exit_logits.grad, of_classifiers)
    (gradient,) = torch.autograd.grad(of_policies, output.policy_logits)
    torch.testing.assert_close(output.policy_logits.grad, gradient)


def test_policies_learn_from_the_held_out_rows_of_a_batch_alone(output):
    held_out = torch.tensor([True, False, False, True])
    LOSSES.joint(output, {**BATCH, "for_policies": held_out}).backward()
    gradient = output.policy_logits.grad
    assert (gradient[held_out] != 0).any(dim=1).all()
    assert (gradient[~held_out] == 0).all()
    assert (output.exit_logits.grad != 0).all()


def test_each_row_may_have_a_price_of_its_own(output):
    """The loss of rows with one alpha each is the mean of what each row costs alone."""
    alphas = [0.0, 0.1, 0.5, 2.0]
    together = LOSSES.policies(output, {**BATCH, "alpha": torch.tensor(alphas)})
    alone = [
        Losses(exact, alpha).policies(
            ConsistentEEOutput(
                exit_logits=output.exit_logits[row : row + 1],
                policy_logits=output.policy_logits[row : row + 1],
            ),
            {name: values[row : row + 1] for name, values in BATCH.items()},
        )
        for row, alpha in enumerate(alphas)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_reinforce_samples_the_same_losses(output):
    """Its mean over many samples is the exact loss of the classifiers and its gradient."""
    torch.manual_seed(0)
    sampled = Losses(Reinforce(samples=20_000), ALPHA).joint(output, BATCH)
    sampled.backward()
    found = output.exit_logits.grad.clone(), output.policy_logits.grad.clone()
    output.exit_logits.grad = output.policy_logits.grad = None
    LOSSES.joint(output, BATCH).backward()
    torch.testing.assert_close(found[0], output.exit_logits.grad, atol=5e-3, rtol=0)
    torch.testing.assert_close(found[1], output.policy_logits.grad, atol=5e-3, rtol=0)


def test_a_spread_gives_every_classifier_its_share(output):
    """Half of the exits' loss and half of the layers' mean, beside the policies' own."""
    spread = Losses(exact, ALPHA, spread=0.5).joint(output, BATCH)
    policies = LOSSES.policies(output, BATCH)
    at_exits = LOSSES.joint(output, BATCH) - policies
    even = exit_loss(output.exit_logits, LABELS).mean()
    torch.testing.assert_close(spread, policies + (at_exits + even) / 2)


def test_entropy_of_the_exits_is_worth_its_bonus_to_policies_alone(output):
    bonus = Losses(exact, ALPHA, entropy_bonus=0.3)
    entropy = torch.distributions.Categorical(
        logits=exit_log_distribution(output.policy_logits.detach())
    ).entropy()
    for phase in ("policies", "joint"):
        found, plain = (getattr(losses, phase)(output, BATCH) for losses in (bonus, LOSSES))
        torch.testing.assert_close(plain - found, 0.3 * entropy.mean())
    (found - plain).backward()
    assert (output.policy_logits.grad != 0).all()
    assert output.exit_logits.grad is None or (output.exit_logits.grad == 0).all()


@pytest.mark.parametrize("kind", ["classes", "set", "number"])
def test_earlier_classifiers_learn_from_the_last_one(kind: str) -> None:
    """By hand, layer by layer; the last one is not moved by the others."""
    generator = torch.Generator().manual_seed(5)
    classes = 1 if kind == "number" else C
    logits = torch.randn(B, L, classes, generator=generator, requires_grad=True)
    output = ConsistentEEOutput(logits=logits[:, -1], exit_logits=logits)
    answer_type, labels = {
        "classes": ("single_label_classification", LABELS),
        "set": ("multi_label_classification", torch.randint(0, 2, (B, C)).float()),
        "number": ("regression", torch.randn(B)),
    }[kind]
    options: Any = {"label_std": 2.0, "answer_type": answer_type}
    plain = Losses(exact, ALPHA, **options).trunk(output, {"labels": labels})
    distilled = Losses(exact, ALPHA, distillation=0.7, **options).trunk(output, {"labels": labels})
    teacher, expected = logits[:, -1].detach(), torch.tensor(0.0)
    for layer in range(L):
        z = logits[:, layer]
        if kind == "classes":
            p = teacher.softmax(-1)
            far = (p * (p.log() - z.softmax(-1).log())).sum(-1)
        elif kind == "set":
            p, q = teacher.sigmoid(), z.sigmoid()
            far = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1)
        else:
            far = ((z - teacher) / 2.0).square().squeeze(-1)
        expected = expected + (layer + 1) * far.mean() / 6
    torch.testing.assert_close(distilled, plain + 0.7 * expected)
    (gradient,) = torch.autograd.grad(distilled - plain, logits)
    assert (gradient[:, :-1] != 0).all()
    torch.testing.assert_close(gradient[:, -1], torch.zeros(B, classes), atol=1e-6, rtol=0)
