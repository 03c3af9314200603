"""Exits of models with random weights: thresholds that let a given share of the rows leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from consistentee_ext import FastEarlyExitEncoder

# Share of rows that leave at each of 12 layers: a mean exit layer of 5.5, a layer ratio of 2.2.
EXIT_SHARES = (0.0, 0.22, 0.18, 0.15, 0.1, 0.08, 0.0, 0.07, 0.0, 0.0, 0.0, 0.2)


def stretched(shares: Sequence[float], layers: int) -> tuple[float, ...]:
    """The shares of L' layers over L: those of layer l go to layer ceil(l L / L')."""
    out = [0.0] * layers
    for layer, share in enumerate(shares, start=1):
        out[math.ceil(layer * layers / len(shares)) - 1] += share
    return tuple(out)


def set_exit_shares(
    encoder: FastEarlyExitEncoder,
    batches: Sequence[Mapping[str, torch.Tensor]],
    shares: Sequence[float],
) -> None:
    """Set thresholds by which the given share of the rows leaves at each layer."""
    early = encoder.exit_layers[:-1]
    rows = sum(len(batch["input_ids"]) for batch in batches)
    # The rows up to each layer, to the nearest row.
    bounds = np.round(np.cumsum((0.0, *shares)) * rows).astype(int)
    thresholds = dict.fromkeys(early, 1.0)
    stay = torch.ones(rows, dtype=torch.bool)
    for layer in early:
        leaving = int(bounds[layer] - bounds[layer - 1])
        if not leaving:
            continue
        # With every threshold but this at 1, each row leaves here and shows its score.
        encoder.threshold = dict.fromkeys(early, 1.0) | {layer: 1e-9}
        scores = torch.cat([encoder(**batch).exit_scores for batch in batches]).cpu()
        highest = scores[stay].sort(descending=True).values
        thresholds[layer] = highest[leaving - 1 : leaving + 1].double().mean().item()
        stay &= scores <= thresholds[layer]
    encoder.threshold = thresholds
