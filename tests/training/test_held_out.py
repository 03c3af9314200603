"""Held-out rows and folds: shares of the classes, and what cannot be split."""

from __future__ import annotations

import numpy as np
import pytest

from consistentee.training.held_out import fold_rows, held_out_rows


def test_held_out_rows_keep_the_shares_of_the_classes():
    labels = [0] * 40 + [1] * 20 + [2]
    chosen = held_out_rows(labels, 0.25, seed=3)
    assert [int(chosen[:40].sum()), int(chosen[40:60].sum()), int(chosen[60])] == [10, 5, 0]
    assert np.array_equal(chosen, held_out_rows(labels, 0.25, seed=3))
    assert not np.array_equal(chosen, held_out_rows(labels, 0.25, seed=4))


def test_folds_are_a_partition_that_keeps_the_shares_of_the_classes():
    labels = [0] * 40 + [1] * 21 + [2] * 2
    folds = fold_rows(labels, 3, seed=3)
    assert (np.sum(folds, axis=0) == 1).all()
    assert [int(fold.sum()) for fold in folds] == [21, 21, 21]
    for rows, counts in ((slice(0, 40), {13, 14}), (slice(40, 61), {7}), (slice(61, 63), {0, 1})):
        assert {int(fold[rows].sum()) for fold in folds} == counts
    assert np.array_equal(folds, fold_rows(labels, 3, seed=3))
    assert not np.array_equal(folds, fold_rows(labels, 3, seed=4))


def test_numbers_are_no_classes():
    labels = [row / 7 for row in range(40)]
    assert held_out_rows(labels, 0.25, seed=0).sum() == 10
    assert [int(fold.sum()) for fold in fold_rows(labels, 3, seed=0)] == [14, 13, 13]


def test_sets_of_labels_are_no_classes():
    for kind in (float, int):
        labels = [[kind(row % 2), kind(1)] for row in range(40)]
        assert held_out_rows(labels, 0.25, seed=0).sum() == 10
        assert [int(fold.sum()) for fold in fold_rows(labels, 3, seed=0)] == [14, 13, 13]


def test_a_class_too_small_to_split_is_refused():
    with pytest.raises(ValueError, match=r"^train_data: expected at least two rows .* class 2$"):
        fold_rows([0, 0, 1, 1, 2], 2, seed=0)
    with pytest.raises(ValueError, match=r"^held_out: a share of 0.8 leaves no row of class 1"):
        held_out_rows([0] * 10 + [1] * 2, 0.8, seed=0)
    with pytest.raises(ValueError, match=r"^train_data: 1 rows are too few to hold out 0.2"):
        held_out_rows([0], 0.2, seed=0)
