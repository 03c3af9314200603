"""What a task is measured by, from scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

Metric = Callable[[Any, Any], float]

# From labels and predictions, both [N].
METRICS: dict[str, Metric] = {
    "accuracy": accuracy_score,
    "f1": f1_score,  # of class 1, the second in the order of the labels
    "matthews": matthews_corrcoef,
    "spearman": lambda labels, predicted: spearmanr(labels, predicted).statistic,
}


def check_metric(metric: str, num_labels: int, regression: bool) -> None:
    """Raise ValueError unless a model of this kind can be measured so."""
    kinds = ("spearman",) if regression else tuple(METRICS)[:-1]
    if metric not in kinds:
        kind = "regression" if regression else "classification"
        raise ValueError(f"metric: expected one of {kinds} in {kind}, got {metric!r}")
    if metric == "f1" and num_labels != 2:
        raise ValueError(f"metric: expected two classes for 'f1', got {num_labels}")


def measure(metric: str, labels: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The metric of N rows: accuracy and F1 in [0, 1], the correlations in [-1, 1].

    Predictions that are all the same have no correlation: 0.
    """
    if metric == "spearman" and np.ptp(np.asarray(predicted, dtype=float)) == 0.0:
        return 0.0
    return float(METRICS[metric](labels, predicted))


def predictions(logits: Tensor, regression: bool) -> Tensor:
    """The class of the highest logit, or the number itself: ``[..., C]`` to ``[...]``."""
    return logits[..., 0] if regression else logits.argmax(dim=-1)
