"""COSEE's objective against loops by hand."""

from __future__ import annotations

import math

import pytest
import torch

from consistentee.model.modeling import ConsistentEEOutput
from consistentee.training.consistent_weights import ConsistentWeights

B, L, C = 6, 4, 3
LABELS = [0, 2, 1, 1, 0, 2]


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(B, L, C, generator=generator, dtype=torch.float64)


def loss_of(objective: ConsistentWeights, logits: torch.Tensor, progress: float) -> torch.Tensor:
    output = ConsistentEEOutput(exit_logits=logits, policy_logits=logits.new_zeros(B, L - 1))
    batch = {"labels": torch.tensor(LABELS), "progress": torch.tensor(progress)}
    return objective(output, batch)


def score(logits: list[float]) -> float:
    total = sum(map(math.exp, logits))
    return total / (1 + total)


def scores_of(logits: torch.Tensor) -> list[list[float]]:
    return [[score(layer) for layer in row[:-1]] for row in logits.tolist()]


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[label]


def classification_loss(logits: torch.Tensor, thresholds: list[float], decay: float) -> float:
    total = 0.0
    for threshold in thresholds:
        for row, scores, label in zip(logits.tolist(), scores_of(logits), LABELS, strict=True):
            exits = [layer for layer in range(L - 1) if scores[layer] > threshold]
            leaves = exits[0] if exits else L - 1
            weights = [math.exp(-decay * abs(layer - leaves)) for layer in range(L)]
            losses = [cross_entropy(layer, label) for layer in row]
            weighted = sum(w * loss for w, loss in zip(weights, losses, strict=True))
            total += weighted / sum(weights)
    return total / len(thresholds) / B


def signal_loss(logits: torch.Tensor, margin: float) -> float:
    total = 0.0
    for layer in range(L - 1):
        right: list[float] = []
        wrong: list[float] = []
        for row, scores, label in zip(logits.tolist(), scores_of(logits), LABELS, strict=True):
            answer = max(range(C), key=row[layer].__getitem__)
            (right if answer == label else wrong).append(scores[layer])
        if right and wrong:
            gap = sum(wrong) / len(wrong) - sum(right) / len(right)
            total += max(0.0, gap + margin)
    return total / (L - 1)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_layers_weigh_by_their_distance_from_where_the_row_leaves(logits, progress):
    objective = ConsistentWeights(decay=1.5, calibration=0.0, thresholds=3)
    torch.manual_seed(7)
    loss = loss_of(objective, logits, progress)
    torch.manual_seed(7)
    flat = [value for row in scores_of(logits) for value in row]
    drawn = torch.rand(3).tolist()
    thresholds = [min(flat) + (max(flat) - min(flat)) * share for share in drawn]
    expected = classification_loss(logits, thresholds, decay=1.5 * progress)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_no_decay_gives_all_layers_the_same_weight(logits):
    loss = loss_of(ConsistentWeights(decay=0.0, calibration=0.0), logits, 1.0)
    rows = zip(logits.tolist(), LABELS, strict=True)
    expected = sum(cross_entropy(layer, label) for row, label in rows for layer in row) / B / L
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_scores_of_right_answers_are_asked_to_be_higher(logits, margin):
    plain = loss_of(ConsistentWeights(decay=0.0, calibration=0.0, margin=margin), logits, 1.0)
    both = loss_of(ConsistentWeights(decay=0.0, calibration=2.0, margin=margin), logits, 1.0)
    expected = signal_loss(logits, margin)
    assert expected > 0.0
    assert (both - plain).item() == pytest.approx(2.0 * expected)


def test_a_layer_that_is_right_about_all_rows_has_no_signal_loss(logits):
    for row, label in enumerate(LABELS):
        logits[row, 0, label] = 20.0
    logits.requires_grad_()
    loss = loss_of(ConsistentWeights(calibration=1.0), logits, 0.5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 1:] != 0).any(dim=-1).all()
