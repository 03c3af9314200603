"""What a task is measured by, from scikit-learn and SciPy: `METRICS` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from consistentee_ext.names import MULTI_LABEL, REGRESSION
from consistentee_ext.ops.prediction import answers


@dataclass(frozen=True)
class Quality:
    """The quality of a model's answers to a table, by one metric.

    Attributes:
        metric: one of `METRICS`.
        at_exits: of the answers at the layers where rows leave.
        at_full_depth: of the last layer's answers.
        by_layer: of each layer's answers; empty if not measured.
    """

    metric: str
    at_exits: float
    at_full_depth: float
    by_layer: tuple[float, ...] = ()

    @classmethod
    def from_figures(cls, figures: Mapping[str, Any], metric: str) -> Quality:
        """Read ``<metric>``, ``full_depth_<metric>`` and, if there, ``layer_<metric>``."""
        by_layer = tuple(figures.get(f"layer_{metric}", ()))
        return cls(metric, figures[metric], figures[f"full_depth_{metric}"], by_layer)

    def figures(self) -> dict[str, float]:
        """``<metric>`` and ``full_depth_<metric>``, as in JSON files."""
        return {self.metric: self.at_exits, f"full_depth_{self.metric}": self.at_full_depth}


def measure(metric: str, labels: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The metric of N rows: accuracy and F1 in [0, 1], the correlations in [-1, 1].

    The correlation of constant predictions is 0. A set of labels, C numbers 0 or 1, is right as a
    whole or wrong; the F1 of a label that no row has and none was given is 0.
    """
    # Imported here: models can be defined, and trained on a GPU machine, without these packages.
    from scipy.stats import spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if metric == "spearman":
        if np.ptp(np.asarray(predicted, dtype=float)) == 0.0:
            return 0.0
        return float(spearmanr(labels, predicted).statistic)
    if metric in ("f1_micro", "f1_macro"):
        average = metric.removeprefix("f1_")
        return float(f1_score(labels, predicted, average=average, zero_division=0.0))
    measures = {"accuracy": accuracy_score, "f1": f1_score, "matthews": matthews_corrcoef}
    return float(measures[metric](labels, predicted))


def predictions(logits: Tensor, problem_type: str | None) -> Tensor:
    """A model's `answers`, or the number itself: ``[..., C]`` to ``[...]``; sets keep C."""
    if problem_type == REGRESSION:
        return logits[..., 0]
    return answers(logits, problem_type == MULTI_LABEL)
