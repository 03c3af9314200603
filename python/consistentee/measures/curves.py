"""Accuracy against depth: the curves of all thresholds, and values read off them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import auc, roc_auc_score
from torch import Tensor

from consistentee.measures.exit_scores import at_exit, leave_at

MAX_THRESHOLDS = 512


@dataclass(frozen=True)
class Curve:
    """Accuracy against the mean exit layer, from the first layer to full depth.

    A value between two points is reached by a mixture: a random share of the rows runs at one
    point's threshold, the rest at the other's.

    Attributes:
        layers: mean exit layer of each point, ascending.
        accuracy: of each point, in [0, 1].
        thresholds: of each point; empty for a curve that has none.
    """

    layers: tuple[float, ...]
    accuracy: tuple[float, ...]
    thresholds: tuple[float, ...] = ()

    def at(self, layers: float) -> float:
        """The accuracy at a mean exit layer, clamped to the ends of the curve."""
        return float(np.interp(layers, self.layers, self.accuracy))

    def at_ratio(self, ratio: float) -> float:
        """The accuracy at a layer ratio, ``L / mean exit layer``."""
        return self.at(self.layers[-1] / ratio)

    def area(self) -> float:
        """The mean accuracy over mean exit layers from 1 to L: the area under the curve / (L - 1).

        Left of its first point the curve is extended with that point's accuracy.
        """
        layers = (1.0, *self.layers)
        return float(auc(layers, (self.accuracy[0], *self.accuracy)) / (layers[-1] - 1.0))


def threshold_curve(scores: Tensor, correct: Tensor) -> Curve:
    """The curve of all thresholds, or of `MAX_THRESHOLDS` quantiles if there are more.

    Args:
        scores: ``[N, L-1]`` of a criterion.
        correct: ``[N, L]``, 1 where a layer's answer is right.
    """
    # Rows leave above a threshold: all of them below the lowest score, none at the highest.
    values = torch.unique(scores.double())
    if len(values) > MAX_THRESHOLDS:
        share = torch.linspace(0, 1, MAX_THRESHOLDS, dtype=torch.float64)
        values = torch.unique(torch.from_numpy(np.quantile(values.numpy(), share.numpy())))
    lowest = torch.full((1,), -1.0, dtype=torch.float64)
    points = {}
    for threshold in torch.cat((lowest, values)).tolist():
        exits = leave_at(scores.double(), threshold)
        layer = exits.double().mean().item()
        # If two thresholds give the same depth, the higher one is kept.
        points[layer] = (at_exit(correct.double(), exits).mean().item(), threshold)
    layers = sorted(points)
    return Curve(
        tuple(layers),
        tuple(points[layer][0] for layer in layers),
        tuple(points[layer][1] for layer in layers),
    )


def failure_auroc(scores: Tensor, correct: Tensor) -> list[float | None]:
    """How well each layer's score tells its right answers from its wrong ones.

    The area under the receiver operating characteristic, 0.5 for chance, 1 for no mistake: how much
    a better criterion could still gain (failure prediction, arXiv 2508.21495).

    Args:
        scores: ``[N, L-1]`` of a criterion.
        correct: ``[N, L]``, 1 where a layer's answer is right.

    Returns:
        One number a layer but the last; None where all answers are right, or all wrong.
    """
    columns = zip(correct[:, :-1].unbind(dim=1), scores.unbind(dim=1), strict=True)
    return [
        float(roc_auc_score(right.bool(), score)) if 0 < right.double().mean() < 1 else None
        for right, score in columns
    ]


def truncation_curve(layer_accuracy: dict[int, float]) -> Curve:
    """Every row stops at the same layer; between two layers the rows are split at random."""
    layers = sorted(layer_accuracy)
    return Curve(tuple(map(float, layers)), tuple(layer_accuracy[layer] for layer in layers))


def oracle_curve(correct: Tensor) -> Curve:
    """The upper bound for exits: an oracle that knows each row's first correct layer.

    A row's cheapest correct exit is its first correct layer. Rows are moved there from layer 1 in
    order of that depth; rows that no layer answers correctly stay at layer 1. After the last gain
    the curve is flat.

    Args:
        correct: ``[N, L]``, 1 where a layer's answer is right.
    """
    rows, num_layers = correct.shape
    solvable = correct.bool().any(dim=1)
    first = correct.int().argmax(dim=1)[solvable]
    won = torch.bincount(first, minlength=num_layers).double()
    accuracy = (won.cumsum(0) / rows).tolist()
    depth = (1.0 + (won * torch.arange(num_layers)).cumsum(0) / rows).tolist()
    points = dict(zip(depth, accuracy, strict=True)) | {float(num_layers): accuracy[-1]}
    return Curve(tuple(points), tuple(points.values()))
