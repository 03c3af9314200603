"""Accuracy against depth: thresholds, mixtures of exits, the oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consistentee.measures.curves import Curve, oracle_curve, threshold_curve, truncation_curve

CORRECT = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 1]])
SCORES = torch.tensor([[0.1, 0.8], [0.9, 0.2], [0.3, 0.4], [0.2, 0.5]])


def brute_force(threshold: float) -> tuple[float, float]:
    layers, right = [], []
    for scores, correct in zip(SCORES.tolist(), CORRECT.tolist(), strict=True):
        layer = next((i for i, score in enumerate(scores) if score > threshold), 2)
        layers.append(layer + 1)
        right.append(correct[layer])
    return sum(layers) / 4, sum(right) / 4


def test_every_threshold_is_a_point():
    curve = threshold_curve(SCORES, CORRECT)
    middle = [-1.0, *(value + 0.05 for value in sorted(SCORES.flatten().tolist()))]
    expected = dict(brute_force(threshold) for threshold in middle)
    assert curve.layers == pytest.approx(sorted(expected))
    assert curve.accuracy == pytest.approx([expected[layer] for layer in sorted(expected)])
    assert (curve.layers[0], curve.layers[-1]) == (1.0, 3.0)
    for layer, accuracy, threshold in zip(
        curve.layers, curve.accuracy, curve.thresholds, strict=True
    ):
        assert brute_force(threshold) == pytest.approx((layer, accuracy))


def test_between_points_lie_mixtures_of_both():
    curve = Curve((1.0, 2.0, 4.0), (0.5, 0.7, 0.8))
    assert curve.at(1.5) == pytest.approx(0.6)
    assert curve.at_ratio(4 / 3) == pytest.approx(0.75)
    assert curve.at_ratio(8.0) == 0.5
    assert curve.area() == pytest.approx((0.6 * 1 + 0.75 * 2) / 3)
    late = Curve((2.0, 4.0), (0.7, 0.8))  # before its first point a curve is flat
    assert late.area() == pytest.approx((0.7 * 1 + 0.75 * 2) / 3)


def test_truncation():
    curve = truncation_curve({3: 0.9, 1: 0.5, 2: 0.8})
    assert curve == Curve((1.0, 2.0, 3.0), (0.5, 0.8, 0.9))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=4))
def test_no_choice_of_exits_is_above_the_oracle(rows):
    correct = torch.tensor(rows)
    curve = oracle_curve(correct)
    best: dict[float, float] = {}
    for exits in itertools.product((0, 1, 2), repeat=len(rows)):
        depth = 1 + float(np.mean(exits))
        right = float(np.mean([row[layer] for row, layer in zip(rows, exits, strict=True)]))
        best[depth] = max(best.get(depth, 0.0), right)
    for depth, right in best.items():
        assert curve.at(depth) >= right - 1e-9
    assert (curve.layers[0], curve.layers[-1]) == (1.0, 3.0)
    # And each of its points is the work of some choice, or a depth that buys nothing more.
    for depth, right in zip(curve.layers, curve.accuracy, strict=True):
        assert max(value for d, value in best.items() if d <= depth + 1e-9) == pytest.approx(right)


def test_many_scores_are_thinned_to_quantiles():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3000, 3, generator=generator)
    correct = torch.rand(3000, 4, generator=generator) < 0.7
    curve = threshold_curve(scores, correct)
    assert 400 < len(curve.layers) <= 513
    assert np.diff(curve.layers).max() < 0.02
    assert (curve.layers[0], curve.layers[-1]) == (1.0, 4.0)
