"""The threshold that meets a wish, against sums by hand and against 1,000 draws of the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from consistentee.measures.calibration import (
    GRID,
    all_thresholds,
    drop_p_value,
    rows_needed,
    threshold_for_accuracy,
    threshold_for_latency,
    threshold_for_ratio,
)
from consistentee.measures.exit_scores import at_exit, leave_at


def population(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that say how likely an answer is right, and deeper layers that are right more often:
    ``[N, 3]`` and ``[N, 4]``.
    """
    generator = torch.Generator().manual_seed(seed)
    ease = torch.randn(rows, 1, generator=generator)
    depth = torch.tensor([0.5, 1.2, 1.7, 1.9])
    chance = torch.sigmoid(1.5 * ease + depth)
    correct = torch.rand(rows, 4, generator=generator) < chance
    noise = torch.randn(rows, 3, generator=generator)
    return torch.sigmoid(2.0 * ease + depth[:3] + 0.7 * noise), correct.long()


@pytest.fixture(scope="module")
def world() -> tuple[torch.Tensor, torch.Tensor]:
    return population(100_000, seed=0)


def true_drops(scores: torch.Tensor, correct: torch.Tensor) -> dict[float, float]:
    """What each threshold loses on the whole population."""
    full = correct[:, -1].double().mean().item()
    drops = {t: full - at_exit(correct, leave_at(scores, t)).double().mean().item() for t in GRID}
    return drops | {1.0: 0.0}


@pytest.mark.parametrize(
    ("max_drop", "rows", "draws"),
    [
        (0.05, 300, 250),
        pytest.param(0.05, 300, 1000, marks=pytest.mark.slow),
        pytest.param(0.02, 800, 1000, marks=pytest.mark.slow),
    ],
)
def test_the_guarantee_holds_over_many_draws(world, max_drop, rows, draws):
    scores, correct = world
    drops = true_drops(scores, correct)
    assert max(drops.values()) > 2 * max_drop  # there are thresholds that break the promise
    generator = np.random.default_rng(1)
    broken, useful = 0, 0
    for _ in range(draws):
        drawn = torch.from_numpy(generator.choice(len(scores), rows))
        threshold = threshold_for_accuracy(scores[drawn], correct[drawn], max_drop, 0.95)
        broken += drops[threshold] > max_drop
        useful += threshold < 1.0
    # 5% broken promises are allowed; more than the 99.9% quantile of that is no chance.
    assert broken <= binom.ppf(0.999, draws, 0.05)
    assert useful > 0.9 * draws  # nor is it kept by never exiting


def test_the_plain_estimate_would_break_the_promise(world):
    """What the test above can catch: the lowest threshold whose drop on the rows is allowed."""
    scores, correct = world
    drops = true_drops(scores, correct)
    generator = np.random.default_rng(1)
    broken = 0
    for _ in range(200):
        drawn = torch.from_numpy(generator.choice(len(scores), 300))
        found = true_drops(scores[drawn], correct[drawn])
        chosen = min(t for t, drop in found.items() if drop <= 0.02)
        broken += drops[chosen] > 0.02
    assert broken > 0.2 * 200


def test_p_value_is_valid_where_the_drop_is_just_not_allowed():
    """Rows whose mean loss is exactly D: p is below 5% in at most 5% of the draws."""
    generator = np.random.default_rng(2)
    for spoilt, mended, rows in ((0.05, 0.0, 200), (0.10, 0.05, 200), (0.30, 0.25, 1000)):
        draws = generator.multinomial(rows, [spoilt, mended, 1 - spoilt - mended], size=4000)
        p = [drop_p_value(lost, won, rows, spoilt - mended) for lost, won, _ in draws.tolist()]
        assert np.mean(np.array(p) <= 0.05) <= 0.05


def test_p_value_by_hand(monkeypatch):
    monkeypatch.setattr("consistentee.measures.calibration.STAKES", np.array([0.5, 0.9]))
    # D = 0.5: stakes 1.0 and 1.8; one row of each kind: factors 1 - s / 2, 1 + 3s / 2, 1 + s / 2.
    wealth = (0.5 * 2.5 * 1.5 + 0.1 * 3.7 * 1.9) / 2
    assert drop_p_value(1, 1, 3, 0.5) == pytest.approx(1 / wealth)
    assert drop_p_value(3, 0, 3, 0.5) == 1.0


def test_rows_needed_is_where_the_proof_begins():
    for max_drop, confidence in ((0.01, 0.95), (0.2, 0.9), (0.05, 0.99)):
        rows = rows_needed(max_drop, confidence)
        assert drop_p_value(0, 0, rows, max_drop) <= 1 - confidence
        assert drop_p_value(0, 0, rows - 1, max_drop) > 1 - confidence
        # No test can do with fewer: all right answers have this chance where a share D is wrong.
        assert rows >= np.log(1 - confidence) / np.log(1 - max_drop)


def test_too_few_rows_for_a_proof_says_how_many_it_takes():
    scores, correct = population(50, seed=1)
    rows = rows_needed(0.01, 0.95)
    with pytest.raises(ValueError, match=rf"^data: expected at least {rows} rows .* got 50$"):
        threshold_for_accuracy(scores, correct, 0.01, 0.95)
    for name, numbers in (("max_drop", (0.0, 0.95)), ("confidence", (0.01, 1.0))):
        with pytest.raises(ValueError, match=rf"^{name}: expected a number above 0 and below 1"):
            threshold_for_accuracy(scores, correct, *numbers)


def test_exits_that_spoil_much_leave_full_depth():
    scores = torch.full((2000, 2), 0.9999)
    correct = torch.tensor([[0, 1, 1]]).repeat(2000, 1)
    assert threshold_for_accuracy(scores, correct, 0.01, 0.95) == 1.0


@pytest.mark.parametrize("ratio", [1.0, 1.3, 2.0, 3.1])
def test_threshold_for_ratio_is_the_highest_that_is_fast_enough(ratio):
    scores, _ = population(500, seed=3)
    threshold = threshold_for_ratio(scores, ratio)

    def found(t: float) -> float:
        return 4 / leave_at(scores.double(), t).double().mean().item()

    assert found(threshold) >= ratio
    slower = [t for t in all_thresholds(scores) if t > threshold]
    assert not slower or found(slower[0]) < ratio


def test_threshold_for_ratio_by_hand():
    scores = torch.tensor([[0.2, 0.9], [0.6, 0.1], [0.4, 0.3]])
    assert all_thresholds(scores)[-1] == 1.0
    # Mean exit layer 3 above 0.9, 8/3 above 0.6 (row 1 leaves at 2), 2 above 0.4 (row 2 at 1).
    assert threshold_for_ratio(scores, 1.0) == 1.0
    assert threshold_for_ratio(scores, 1.1) == pytest.approx(0.75)
    assert threshold_for_ratio(scores, 1.5) == pytest.approx(0.5)
    assert threshold_for_ratio(scores, 3.0) == pytest.approx(0.1 / 2 + 0.1)
    with pytest.raises(ValueError, match=r"^layer_ratio: expected a number in 1\.\.3, got 3\.5$"):
        threshold_for_ratio(scores, 3.5)
    with pytest.raises(ValueError, match=r"^layer_ratio: expected at most 1\.00, .* got 2$"):
        threshold_for_ratio(torch.zeros(4, 2), 2)


def test_threshold_for_latency_is_the_highest_within_it():
    scores = torch.linspace(0.01, 0.99, 99)[:, None]
    asked: list[float] = []

    def measure(threshold: float) -> float:
        asked.append(threshold)
        return 2.0 + 10.0 * threshold

    threshold = threshold_for_latency(scores, 7.0, measure)
    assert 0.46 < threshold <= 0.5
    assert len(asked) < 10
    assert threshold_for_latency(scores, 50.0, measure) == 1.0
    with pytest.raises(ValueError, match=r"^latency_ms: expected at least 2\.05, .* got 1$"):
        threshold_for_latency(scores, 1, measure)
    with pytest.raises(ValueError, match=r"^latency_ms: expected a number above 0, got 0$"):
        threshold_for_latency(scores, 0, measure)
