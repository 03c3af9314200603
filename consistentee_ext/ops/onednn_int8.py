"""Weights and activations of 8 bits: how they are rounded, and their product by oneDNN.

A weight is an integer of at most 127 times a scale of its row, that is of its output o. An
activation is an integer from 0 to 2A + 1, less A + 1, times a scale of its token t, plus a centre
of its token; both are found as the token comes. With the integers V of activations, less A + 1, and
W of weights

    y = f(scale_t * scale_o * (V W^T) + centre_t * scale_o * (1 W^T) + b)

The sums of integers are exact. csrc/cpu/linear/onednn_int8.cpp calls the same product.
"""

from __future__ import annotations

import importlib
from functools import cache

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from consistentee_ext.ops.onednn import ACTIVATIONS, is_available
from consistentee_ext.weights import LinearWeights

WEIGHT_LEVELS = 127
# A, for activations of 8 and 7 bits. On processors without VNNI oneDNN adds pairs of products in 16
# bits: 2 * 255 * 127 does not fit there and is cut without a word, 2 * 127 * 127 fits.
LEVELS = (127, 63)
_LEAST = 1e-30  # by less than it nothing is divided, as in csrc/kernels/cpu/quantize.h


def round_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``[O, I]`` as integers of at most 127, and the scale of each row, ``[O]`` float32."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1) / WEIGHT_LEVELS
    scale = torch.where(scale > _LEAST, scale, 1.0)
    return (weight / scale[:, None]).round().to(torch.int8), scale


def round_rows(x: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """``x [T, I]`` as integers, and each row's scale and centre, ``[T, 1]`` float32.

    ``(x - min x) / scale`` rounded, uint8, where ``scale = (max x - min x) / (2 levels + 1)`` and
    ``centre = min x + scale (levels + 1)``. Both are NaN where a number of the row is not finite.
    """
    x = x.float()
    if not x.numel():
        nothing = x.new_zeros(len(x), 1)
        return x.to(torch.uint8), nothing, nothing
    low, high = x.aminmax(dim=1, keepdim=True)
    steps, width = 2 * levels + 1, high - low
    finite = x.isfinite().all(dim=1, keepdim=True) & width.isfinite()
    divides = finite & (width >= _LEAST)
    scale = torch.where(divides, width / steps, 0.0)
    integers = torch.where(divides, ((x - low) * (steps / width)).round(), 0.0)
    centre = torch.where(finite, low + scale * (levels + 1), torch.nan)
    return integers.to(torch.uint8), torch.where(finite, scale, torch.nan), centre


def product(
    integers: Tensor,
    levels: int,
    weight: Tensor,
    scale: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``scale (V W^T)``, ``[T, O]`` in `dtype`, of integers of `round_rows` and weights that are
    laid out.
    """
    ones = torch.ones(1)
    zero_point = torch.tensor([levels + 1], dtype=torch.int32)
    none = torch.zeros(len(scale), dtype=torch.int64)
    out: Tensor = torch.ops.onednn.qlinear_pointwise.tensor(
        integers, ones, zero_point, weight, scale, none, None, 1.0, 0, dtype, "none", [], ""
    )
    return out


def _exact_product(integers: Tensor, levels: int, weight: Tensor) -> Tensor:
    """In float64, which holds every sum; slow."""
    return (integers.double() - (levels + 1)) @ weight.double().T


def _is_exact(levels: int) -> bool:
    """Whether oneDNN's product is right where sums of pairs are largest, on every path by size."""
    for inputs, outputs in ((768, 128), (70, 33)):
        signs = torch.ones(outputs, inputs, dtype=torch.int8)
        signs[1::3] = -1
        signs[2::3, ::2] = -1
        weight = signs * WEIGHT_LEVELS
        ends = torch.tensor([2 * levels + 1, 1], dtype=torch.uint8)
        rows = torch.arange(19)[:, None]
        integers = ends[(torch.arange(inputs) // (rows + 1)) % 2]
        integers[0], integers[1] = ends[0], ends[1]
        laid_out = torch.ops.onednn.qlinear_prepack(weight, None)
        found = product(integers, levels, laid_out, torch.ones(outputs))
        if not torch.equal(found.double(), _exact_product(integers, levels, weight)):
            return False
    return True


def _missing() -> str | None:
    """What oneDNN's products of 8 bits lack here, if anything."""
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN"
    if not all(hasattr(torch.ops.onednn, op) for op in ("qlinear_prepack", "qlinear_pointwise")):
        return "this torch has no int8 products of oneDNN"
    try:
        native = importlib.import_module("consistentee_ext._C")
    except ImportError:
        return None
    return None if native.build_info()["int8_product"] else "torch's C interface has none"


@cache
def activation_levels() -> tuple[int | None, str]:
    """The most levels with which oneDNN's product is exact on this processor, found by trying, and
    what they are; None and the reason where it is not to be had.
    """
    missing = _missing()
    if missing is not None:
        return None, missing
    try:
        for levels in LEVELS:
            if _is_exact(levels):
                bits = levels.bit_length() + 1
                return levels, f"activations of {bits} bits"
    except RuntimeError as error:
        return None, str(error).partition("\n")[0]
    return None, "oneDNN's int8 products are not exact here"


def dtypes() -> tuple[torch.dtype, ...]:
    """Of the hidden states around the products. Without AVX-512, oneDNN is unusably slow where
    results are bfloat16.
    """
    if is_available(torch.bfloat16) and torch.cpu._is_avx512_supported():
        return torch.float32, torch.bfloat16
    return (torch.float32,)


def prepack(
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: str | None,
    levels: int | None = None,
) -> LinearWeights:
    """Integers ``[O, I]`` laid out for oneDNN, where activation and processor allow it.

    `levels` is for tests; by default those of the processor.
    """
    usable, _ = activation_levels()
    known = activation in ACTIVATIONS and weight.device.type == "cpu" and usable is not None
    levels = levels or usable or LEVELS[0]
    if not known:
        return LinearWeights(weight, bias, activation, scale=scale, levels=levels)
    laid_out = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return LinearWeights(laid_out, bias, activation, prepacked=True, scale=scale, levels=levels)


def dense(weights: LinearWeights) -> Tensor:
    """The integers ``[O, I]`` as they were before they were laid out."""
    return weights.weight.to_dense().T.contiguous() if weights.prepacked else weights.weight


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """``f(x W^T + b)``, ``[T, O]`` in the dtype of x, for ``x [T, I]``."""
    levels, weight_scale = weights.levels, weights.scale
    assert weight_scale is not None
    integers, scale, centre = round_rows(x, levels)
    ones = torch.full((1, weights.shape[1]), levels + 2, dtype=torch.uint8)

    def times_weights(rows: Tensor) -> Tensor:
        if weights.prepacked:
            return product(rows, levels, weights.weight, weight_scale)
        return _exact_product(rows, levels, weights.weight).float() * weight_scale

    y = scale * times_weights(integers) + centre * times_weights(ones)
    if weights.bias is not None:
        y = y + weights.bias
    return (y if weights.activation is None else ACT2FN[weights.activation](y)).to(x.dtype)
