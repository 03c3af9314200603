"""Products by oneDNN with prepacked weights of float32 or bfloat16.

csrc/cpu/linear/onednn.cpp calls the same product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.weights import LinearWeights

# In float32 torch's own CPU product does not use AVX-512 on every processor that has it; oneDNN
# with prepacked weights does, and fuses bias and activation. Fusing the residual as well gains
# nothing: the layer norm after it reads the residual in the time it would take alone.
_DTYPES = (torch.float32, torch.bfloat16)
# Of each activation, oneDNN's name and variant.
ACTIVATIONS = {
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "tanh": ("tanh", ""),
}


def is_available(dtype: torch.dtype) -> bool:
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
        return is_available(dtype) and torch.cpu._is_avx512_bf16_supported()
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
    known = weight.device.type == "cpu" and activation in ACTIVATIONS
    return known and is_available(weight.dtype)


def dense(weights: LinearWeights) -> Tensor:
    """``weight [O, I]`` as it was before it was laid out."""
    return weights.weight.to_dense() if weights.prepacked else weights.weight


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """``f(x W^T + b)``, ``[T, O]``, for ``x [T, I]`` and prepacked weights."""
    name, variant = ACTIVATIONS[weights.activation]
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        x, weights.weight, weights.bias, name, [], variant
    )
    return out
