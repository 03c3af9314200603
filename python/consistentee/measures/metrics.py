"""What a task is measured by, from scikit-learn and SciPy: `METRICS` of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


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
