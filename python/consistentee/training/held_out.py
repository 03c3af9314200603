"""Which training rows are held out from phase 1: a share of them, or each fold in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
Labels = Sequence[int] | Sequence[float] | Sequence[Sequence[float]]


def held_out_rows(labels: Labels, share: float, seed: int) -> BoolArray:
    """Choose the same share of each class at random: a boolean ``[N]``.

    Numbers and sets are no classes: all rows of floating labels, or of labels ``[N, C]``, count as
    one class.

    Raises:
        ValueError: no row would be held out, or every row of a class.
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
    """Divide the rows into folds with the same share of each class: a boolean ``[N]`` for each.

    Raises:
        ValueError: a class has only one row; the trunk of that row's fold would not see the class.
    """
    generator = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=int)
    start = 0  # not reset for each class, so that folds have equal sizes
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
    if classes.ndim == 2 or np.issubdtype(classes.dtype, np.floating):
        return [np.arange(len(classes))]
    return [np.flatnonzero(classes == label) for label in np.unique(classes)]
