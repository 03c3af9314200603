"""What a task is measured by, from scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

# f1 is of class 1, the second in the order of the labels.
METRICS = ("accuracy", "f1", "matthews", "spearman")


def check_metric(metric: str, num_labels: int, regression: bool) -> None:
    """Raise ValueError unless a model of this kind can be measured so."""
    kinds = METRICS[-1:] if regression else METRICS[:-1]
    if metric not in kinds:
        kind = "regression" if regression else "classification"
        raise ValueError(f"metric: expected one of {kinds} in {kind}, got {metric!r}")
    if metric == "f1" and num_labels != 2:
        raise ValueError(f"metric: expected two classes for 'f1', got {num_labels}")


def measure(metric: str, labels: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The metric of N rows: accuracy and F1 in [0, 1], the correlations in [-1, 1].

    Predictions that are all the same have no correlation: 0.
    """
    # Imported here: a model is defined, and trained on a GPU machine, without these packages.
    from scipy.stats import spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if metric == "spearman":
        if np.ptp(np.asarray(predicted, dtype=float)) == 0.0:
            return 0.0
        return float(spearmanr(labels, predicted).statistic)
    measures = {"accuracy": accuracy_score, "f1": f1_score, "matthews": matthews_corrcoef}
    return float(measures[metric](labels, predicted))


def predictions(logits: Tensor, regression: bool) -> Tensor:
    """The class of the highest logit, or the number itself: ``[..., C]`` to ``[...]``."""
    return logits[..., 0] if regression else logits.argmax(dim=-1)
