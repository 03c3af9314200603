"""The specification itself, against values worked out by hand and against numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exit_cases import decide_by

from consistentee_ext.ops import reference
from consistentee_ext.ops.prediction import prediction_statistics
from consistentee_ext.packed import ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights


def small_batch() -> PackedBatch:
    """Rows of 2, 1 and 3 tokens; H = 2; the caller's rows 4, 0 and 2."""
    hidden = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]])
    return PackedBatch(
        hidden, torch.tensor([0, 2, 3, 6], dtype=torch.int32), torch.tensor([4, 0, 2])
    )


def test_pack_drops_padding() -> None:
    hidden = torch.arange(6.0).view(2, 3, 1)
    packed, cu_seqlens = reference.pack(hidden, torch.tensor([[1, 0, 1], [1, 1, 0]]))
    assert packed.flatten().tolist() == [0, 2, 3, 4]
    assert cu_seqlens.tolist() == [0, 2, 4]
    assert cu_seqlens.dtype == torch.int32


def test_pool() -> None:
    batch = small_batch()
    cls = reference.pool(batch.hidden, batch.cu_seqlens, "cls")
    mean = reference.pool(batch.hidden, batch.cu_seqlens, "mean")
    assert cls.tolist() == [[1, 2], [5, 6], [7, 8]]
    assert mean.tolist() == [[2, 3], [5, 6], [9, 10]]


def test_mean_in_bfloat16_is_rounded_once() -> None:
    # Summed in bfloat16, 512 ones would stop growing at 256.
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, 512], dtype=torch.int32)
    assert reference.pool(hidden, cu_seqlens, "mean").item() == 1.0


def test_prediction_statistics_by_hand() -> None:
    # softmax([log 6, log 3, log 1]) = [0.6, 0.3, 0.1]
    logits = torch.tensor([[math.log(6), math.log(3), 0.0], [0.0, math.log(3), math.log(6)]])
    found = prediction_statistics(logits, torch.tensor([0, 1]))
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    shared = [0.6, 0.3, 1 - entropy / math.log(3), math.log(2)]
    expected = torch.tensor([[*shared, 1.0], [*shared, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_prediction_statistics_of_one_class() -> None:
    found = prediction_statistics(torch.tensor([[0.7]]), torch.tensor([-1]))
    assert found.tolist() == [[1, 0, 1, 0, 0]]


def test_policy_probability_against_float64() -> None:
    rng = np.random.default_rng(0)
    state, statistics = rng.normal(size=(3, 4)), rng.normal(size=(3, 5))
    dense, dense_bias = rng.normal(size=(6, 9)), rng.normal(size=6)
    score, score_bias = rng.normal(size=6), rng.normal(size=1)

    inner = np.concatenate((state, statistics), axis=1) @ dense.T + dense_bias
    gelu = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    expected = 1 / (1 + np.exp(-(gelu @ score + score_bias)))

    weights = HeadWeights(
        torch.zeros(2, 4),
        torch.zeros(2),
        torch.tensor(dense).float(),
        torch.tensor(dense_bias).float(),
        torch.tensor(score).float(),
        torch.tensor(score_bias).float(),
        policy_input="both",
    )
    found = reference.policy_probability(
        torch.tensor(state).float(), torch.tensor(statistics).float(), weights
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def head_that_reads_the_state() -> HeadWeights:
    """Two classes with logits (s, -s) for the state's first element s."""
    return HeadWeights(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2))


def test_exit_step_by_hand() -> None:
    batch = small_batch()
    results = ExitResults.empty(5, 2)
    pooled = torch.tensor([[2.0, 0], [0.1, 0], [-3.0, 0]])
    decision = decide_by(results, "confidence", 0.8, layer=3, max_streak=3, last=False)
    survivors = reference.exit_step(batch, pooled, head_that_reads_the_state(), decision, results)
    # Confidence is sigmoid(2 |tanh x|): 0.873, 0.550 and 0.880. The middle row stays.
    assert survivors.row_ids.tolist() == [0]
    assert survivors.cu_seqlens.tolist() == [0, 1]
    assert survivors.hidden.tolist() == [[5, 6]]
    assert results.exit_layers.tolist() == [0, 0, 3, 0, 3]
    assert results.labels.tolist() == [0, -1, 1, -1, 0]
    score = 1 / (1 + math.exp(-2 * math.tanh(2.0)))
    assert math.isclose(results.exit_scores[4].item(), score, abs_tol=1e-6)
    low, high = math.tanh(-3.0), math.tanh(2.0)
    expected = torch.tensor([[0, 0], [0, 0], [low, -low], [0, 0], [high, -high]])
    torch.testing.assert_close(results.logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("logits", "score"),
    [
        # exp adds up to 10, to 1 / 2, and to more than float32 holds
        ([math.log(6), math.log(3), 0.0], 10 / 11),
        ([-math.log(4), -math.log(8), -math.log(8)], 1 / 3),
        ([1000.0, 0.0, -1000.0], 1.0),
    ],
)
def test_energy_by_hand(logits: list[float], score: float) -> None:
    results = ExitResults.empty(5, 3)
    weights = HeadWeights(torch.zeros(3, 2), torch.tensor(logits))
    for threshold, rows in ((score + 0.01, 3), (score - 0.01, 0)):
        decision = decide_by(results, "energy", threshold, layer=1, max_streak=1, last=False)
        stay = reference.exit_step(small_batch(), torch.zeros(3, 2), weights, decision, results)
        assert len(stay.row_ids) == rows
    assert math.isclose(results.exit_scores[4].item(), score, abs_tol=1e-6)


def test_patience_counts_agreements_in_a_row() -> None:
    results = ExitResults.empty(1, 2)
    batch = PackedBatch(
        torch.ones(1, 2), torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0])
    )
    streaks = []
    for layer, value in enumerate((1.0, 1.0, -1.0, -1.0, -1.0), start=1):
        decision = decide_by(results, "patience", 0.4, layer, max_streak=4, last=False)
        pooled = torch.tensor([[value, 0.0]])
        batch = reference.exit_step(batch, pooled, head_that_reads_the_state(), decision, results)
        streaks.append(results.streaks.item())
    assert streaks == [0, 1, 0, 1, 2]
    # 2 agreements of 4 possible are above 0.4, 1 is not.
    assert results.exit_layers.item() == 5
    assert results.exit_scores.item() == 0.5


def test_each_row_has_its_own_threshold() -> None:
    """Confidences 0.873, 0.550 and 0.880 of the caller's rows 4, 0 and 2."""
    results = ExitResults.empty(5, 2)
    thresholds = torch.tensor([0.54, 0.0, 0.89, 0.0, 0.88])
    decision = decide_by(results, "confidence", thresholds)
    pooled = torch.tensor([[2.0, 0], [0.1, 0], [-3.0, 0]])
    stay = reference.exit_step(
        small_batch(), pooled, head_that_reads_the_state(), decision, results
    )
    assert stay.row_ids.tolist() == [4, 2]
    assert results.exit_layers.tolist() == [1, 0, 0, 0, 0]


def test_relu_in_place_of_tanh() -> None:
    results = ExitResults.empty(5, 2)
    weights = head_that_reads_the_state()._replace(state_activation="relu")
    pooled = torch.tensor([[2.5, 0], [-1.0, 0], [0.5, 0]])
    decision = decide_by(results, "confidence", 1.0, last=True)
    reference.exit_step(small_batch(), pooled, weights, decision, results)
    assert results.logits[[4, 0, 2], 0].tolist() == [2.5, 0.0, 0.5]


def test_every_row_leaves_at_the_last_layer() -> None:
    results = ExitResults.empty(5, 2)
    decision = decide_by(results, "policy", 1.0, layer=6, max_streak=5, last=True)
    left = reference.exit_step(
        small_batch(), torch.zeros(3, 2), head_that_reads_the_state(), decision, results
    )
    assert left.hidden.shape == (0, 2)
    assert left.cu_seqlens.tolist() == [0]
    assert results.exit_layers.tolist() == [6, 0, 6, 0, 6]
    assert results.exit_scores.tolist() == [1, 0, 1, 0, 1]  # p_L := 1


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=8))
def test_compact_keeps_order(rows: list[tuple[int, bool]]) -> None:
    lengths, keep = [length for length, _ in rows], [kept for _, kept in rows]
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    hidden = torch.arange(float(sum(lengths)))[:, None]
    ids = torch.arange(len(rows)) * 10
    found = reference.compact(PackedBatch(hidden, cu_seqlens, ids), torch.tensor(keep))
    # The same by a plain loop.
    tokens = [t for row, kept in enumerate(keep) if kept for t in range(*cu_seqlens[row : row + 2])]
    assert found.hidden.flatten().tolist() == tokens
    assert found.row_ids.tolist() == [10 * row for row, kept in enumerate(keep) if kept]
    assert found.cu_seqlens.diff().tolist() == [n for n, kept in rows if kept]
