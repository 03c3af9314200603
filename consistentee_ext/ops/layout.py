"""Weights of either format, laid out for oneDNN and back, for copies and other processes."""

from __future__ import annotations

import copyreg
from typing import Any

import torch
from torch import Tensor

from consistentee_ext.forks import without_threads
from consistentee_ext.ops import onednn, onednn_int8
from consistentee_ext.weights import LinearWeights


def dense(weights: LinearWeights) -> Tensor:
    """``weight [O, I]`` as it was before it was laid out."""
    return onednn.dense(weights) if weights.scale is None else onednn_int8.dense(weights)


def lay_out(
    weight: Tensor, bias: Tensor | None, activation: str | None, scale: Tensor | None, levels: int
) -> LinearWeights:
    """The fields of `LinearWeights`, laid out for oneDNN where that is possible.

    Raises:
        ValueError: weights of 8 bits on another device than the CPU.
    """
    if scale is None:
        return onednn.prepack(weight, bias, activation)
    if weight.device.type != "cpu":
        raise ValueError(f"device: expected cpu for int8 weights, got {weight.device}")
    usable, _ = onednn_int8.activation_levels()
    levels = min(levels, usable or levels)  # of this processor, which may not be where it was made
    return onednn_int8.prepack(weight, scale, bias, activation, levels)


def move(weights: LinearWeights, device: torch.device) -> LinearWeights:
    """The weights on a device, laid out as it reads them."""
    bias, scale = (None if t is None else t.to(device) for t in (weights.bias, weights.scale))
    return lay_out(dense(weights).to(device), bias, weights.activation, scale, weights.levels)


@without_threads()
def _reduce(weights: LinearWeights) -> tuple[Any, ...]:
    """What pickle and copy make the weights of again: what is laid out has no storage to copy.

    The bytes, as an array: a spawned process would be handed torch's own storage by file
    descriptor, and this one is freed before the process starts.
    """
    if not weights.prepacked:
        return LinearWeights, tuple(weights)
    whole = dense(weights)
    _, bias, activation, _, scale, levels, _ = weights
    return _from_bytes, (
        whole.view(torch.uint8).numpy(),
        whole.dtype,
        bias,
        activation,
        scale,
        levels,
    )


@without_threads()
def _from_bytes(raw: Any, dtype: torch.dtype, *rest: Any) -> LinearWeights:
    return lay_out(torch.from_numpy(raw).view(dtype), *rest)


copyreg.pickle(LinearWeights, _reduce)
