"""What a task is measured by, from scikit-learn and SciPy: `METRICS` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

@dataclass(frozen=True)
class Quality:
    """How good a model's answers to a table are, by one metric.

    Attributes:
        metric: one of `METRICS`.
        at_exits: each row answered by the layer it leaves at.
        at_full_depth: every row answered by the last layer.
        by_layer: every row answered by one layer, for each layer; empty where not measured.
    """

    metric: str
    at_exits: float
    at_full_depth: float
    by_layer: tuple[float, ...] = ()

    @classmethod
    def from_figures(cls, figures: Mapping[str, Any], metric: str) -> Quality:
        """From ``<metric>``, ``full_depth_<metric>`` and perhaps ``layer_<metric>`` of figures."""
        by_layer = tuple(figures.get(f"layer_{metric}", ()))
        return cls(metric, figures[metric], figures[f"full_depth_{metric}"], by_layer)

    def figures(self) -> dict[str, float]:
        """``<metric>`` and ``full_depth_<metric>``, as JSON files have them."""
        return {self.metric: self.at_exits, f"full_depth_{self.metric}": self.at_full_depth}


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
