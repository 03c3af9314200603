"""By-hand values of each metric."""

from __future__ import annotations

import math

import pytest
import torch

from consistentee.measures.metrics import Quality, measure, predictions

LABELS = [1, 1, 1, 0, 0, 0]
PREDICTED = [1, 1, 0, 1, 0, 0]


def test_classes():
    # 2 true and 1 false positives, 1 false and 2 true negatives.
    assert measure("accuracy", LABELS, PREDICTED) == pytest.approx(4 / 6)
    assert measure("f1", LABELS, PREDICTED) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert measure("matthews", LABELS, PREDICTED) == pytest.approx(
        (2 * 2 - 1 * 1) / math.sqrt(3**4)
    )


def test_numbers():
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * (1 + 1) / (4 * 15).
    assert measure("spearman", [0.1, 0.5, 0.7, 9.0], [1.0, 30.0, 2.0, 40.0]) == pytest.approx(0.8)
    assert measure("spearman", [0.1, 0.5], [1.0, 1.0]) == 0.0


def test_predictions():
    assert predictions(torch.tensor([[0.1, 0.9], [3.0, 2.0]]), None).tolist() == [1, 0]
    assert predictions(torch.tensor([[0.5], [3.0]]), "regression").tolist() == [0.5, 3.0]
    logits = torch.tensor([[0.5, -3.0], [-1.0, -0.1], [2.0, 0.1]])
    sets = predictions(logits, "multi_label_classification")
    assert sets.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_sets_of_labels():
    labels = [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]
    predicted = [[1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert measure("accuracy", labels, predicted) == 2 / 4  # as a whole
    # Label by label: 2 hits and 1 false alarm; 1 hit and 1 miss; a label that nobody has.
    assert measure("f1_micro", labels, predicted) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert measure("f1_macro", labels, predicted) == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_quality_by_the_names_of_a_metric():
    figures = {"layer_f1": [0.2, 0.5], "full_depth_f1": 0.5, "f1": 0.4, "full_depth_seconds": 3.0}
    quality = Quality.from_figures(figures, "f1")
    assert quality == Quality("f1", at_exits=0.4, at_full_depth=0.5, by_layer=(0.2, 0.5))
    assert quality.figures() == {"f1": 0.4, "full_depth_f1": 0.5}
