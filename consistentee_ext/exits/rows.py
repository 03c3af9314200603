"""Thresholds of single rows: one pass may mix rows of different speeds.

Letters: N rows the caller gave, E exit layers, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.exits.exits import Exits

# Below the scores of every criterion, which are in [0, 1]: a row leaves at an exit with this
# threshold whatever its score, 0 and rounding below it included. A score that is NaN is above
# nothing: such a row runs to the last layer.
ALL_LEAVE = -1.0

FLOATS = "a floating-point tensor"
INTEGERS = "an int64 or int32 tensor"
KINDS = {
    FLOATS: (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    INTEGERS: (torch.int64, torch.int32),
}


def row_thresholds(
    exits: Exits,
    rows: int,
    row_threshold: object | None = None,
    row_max_layers: object | None = None,
) -> Tensor:
    """The thresholds of a pass, ``[E, N]`` float32, in memory of their own.

    Args:
        exits: their thresholds hold for rows without their own.
        rows: N.
        row_threshold: ``[N]`` floating point, each in (0, 1]: of a row, at every exit layer.
        row_max_layers: ``[N]`` int64 or int32: a row leaves at the last exit layer at or below its
            bound, if it has not left before.

    Raises:
        TypeError, ValueError: the argument named, what was expected, what came.
    """
    thresholds = exits.thresholds(rows).clone()
    if row_threshold is not None:
        values = _check_vector("row_threshold", row_threshold, rows, FLOATS)
        right = (values > 0) & (values <= 1)
        if not bool(right.all()):
            wrong = values[~right][0].item()
            raise ValueError(f"row_threshold: expected numbers in (0, 1], got {wrong}")
        thresholds[:] = values.to(thresholds)
    if row_max_layers is not None:
        bounds = _check_vector("row_max_layers", row_max_layers, rows, INTEGERS)
        layers = torch.tensor(exits.layers, device=bounds.device)
        right = (bounds >= layers[0]) & (bounds <= layers[-1])
        if not bool(right.all()):
            wrong = bounds[~right][0].item()
            raise ValueError(
                f"row_max_layers: expected layers from the first exit's, {exits.layers[0]}, to the "
                f"last one's, {exits.layers[-1]}, got {wrong}"
            )
        last = torch.searchsorted(layers, bounds.long(), right=True) - 1
        index = last.to(thresholds.device)[None]
        thresholds.scatter_(0, index, ALL_LEAVE)
    return thresholds


def _check_vector(name: str, value: object, rows: int, kind: str) -> Tensor:
    wanted = f"{name}: expected {kind} of shape [{rows}], one for each row"
    if not isinstance(value, Tensor):
        raise TypeError(f"{wanted}, got {type(value).__name__}")
    if value.dtype not in KINDS[kind]:
        raise TypeError(f"{wanted}, got {value.dtype}")
    if value.shape != (rows,):
        raise ValueError(f"{wanted}, got shape {tuple(value.shape)}")
    return value
