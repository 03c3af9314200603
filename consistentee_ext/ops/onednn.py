"""Products by oneDNN, and their weights; the one Python file that names torch's private ops.

csrc/cpu/linear/onednn.cpp calls the same product.
"""

from __future__ import annotations

import copyreg
from typing import Any

import torch
from torch import Tensor

from consistentee_ext.forks import without_threads
from consistentee_ext.weights import LinearWeights

# In float32 torch's own CPU product does not use AVX-512 on every processor that has it; oneDNN
# with prepacked weights does, and fuses bias and activation. Fusing the residual as well gains
# nothing: the layer norm after it reads the residual in the time it would take alone.
_DTYPES = (torch.float32, torch.bfloat16)
# Of each activation, oneDNN's name and variant.
_ACTIVATIONS = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
}


def _available(dtype: torch.dtype) -> bool:
    """Whether torch prepacks weights of `dtype`: bfloat16 needs instructions not every CPU has."""
    if dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def is_fast(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies `dtype` at least as fast as float32."""
    if dtype == torch.bfloat16:
        return _available(dtype) and torch.cpu._is_avx512_bf16_supported()
    return dtype == torch.float32


def prepack(weight: Tensor, bias: Tensor | None, activation: str | None = None) -> LinearWeights:
    """``weight [O, I]`` laid out for oneDNN, where weight, activation and processor allow it."""
    if not _multiplies(weight, activation):
        return LinearWeights(weight, bias, activation)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return LinearWeights(laid_out, bias, activation, prepacked=True)


def has_native_product(weights: LinearWeights) -> bool:
    """Whether the C++ op ``linear`` takes them."""
    return weights.prepacked or (
        weights.few_rows and _multiplies(weights.weight, weights.activation)
    )


def _multiplies(weight: Tensor, activation: str | None) -> bool:
    known = weight.device.type == "cpu" and activation in _ACTIVATIONS
    return known and _available(weight.dtype)


def dense(weights: LinearWeights) -> Tensor:
    """``weight [O, I]`` as it was before it was laid out."""
    return weights.weight.to_dense() if weights.prepacked else weights.weight


@without_threads()
def _reduce(weights: LinearWeights) -> tuple[Any, ...]:
    """What pickle and copy make the weights of again: what is laid out has no storage to copy.

    The bytes, as an array: a spawned process would be handed torch's own storage by file
    descriptor, and this one is freed before the process starts.
    """
    if not weights.prepacked:
        return LinearWeights, tuple(weights)
    raw = dense(weights).view(torch.uint8).numpy()
    return _prepack_bytes, (raw, weights.weight.dtype, weights.bias, weights.activation)


@without_threads()
def _prepack_bytes(raw: Any, dtype: torch.dtype, bias: Tensor | None, *rest: Any) -> LinearWeights:
    return prepack(torch.from_numpy(raw).view(dtype), bias, *rest)


copyreg.pickle(LinearWeights, _reduce)


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """``f(x W^T + b)``, ``[T, O]``, for ``x [T, I]`` and prepacked weights."""
    name, variant = _ACTIVATIONS[weights.activation]
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        x, weights.weight, weights.bias, name, [], variant
    )
    return out
