"""Which training rows phase 1 does not see: a held-out share, or each fold in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Labels = Sequence[int] | Sequence[float]


def held_out_rows(labels: Labels, share: float, seed: int) -> BoolArray:
    """A random choice of rows, the same share of each class: a boolean ``[N]``.

    Floating labels are numbers, not classes: their rows are one class.

    Raises:
        ValueError: it would hold out no row, or every row of a class.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for rows in _rows_of_classes(labels):
        count = round(share * len(rows))
        if count == len(rows):
            label = labels[int(rows[0])]
            raise ValueError(
                f"held_out: a share of {share} leaves no row of class {label} to train"
            )
        chosen[generator.permutation(rows)[:count]] = True
    if not chosen.any():
        raise ValueError(f"train_data: {len(labels)} rows are too few to hold out {share} of them")
    return chosen


def fold_rows(labels: Labels, folds: int, seed: int) -> list[BoolArray]:
    """A partition of the rows into folds, each with the same share of each class: booleans
    ``[N]``.

    Raises:
        ValueError: a class has fewer than two rows, so that a fold would train without it.
    """
    generator = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=int)
    start = 0  # goes on from class to class, so that folds are of one size
    for rows in _rows_of_classes(labels):
        if len(rows) < 2:
            raise ValueError(
                f"train_data: expected at least two rows of each class, got one of class "
                f"{labels[int(rows[0])]}"
            )
        fold[generator.permutation(rows)] = (start + np.arange(len(rows))) % folds
        start += len(rows)
    return [fold == number for number in range(folds)]


def _rows_of_classes(labels: Labels) -> list[NDArray[np.intp]]:
    classes = np.asarray(labels)
    if np.issubdtype(classes.dtype, np.floating):
        return [np.arange(len(classes))]
    return [np.flatnonzero(classes == label) for label in np.unique(classes)]
