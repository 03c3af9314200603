"""Linear layers for inference; the one Python file that names torch's private oneDNN operations.

The C++ side calls the same product in csrc/cpu/linear.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

# In float32 torch's own CPU product does not use AVX-512 on every processor that has it; oneDNN
# with weights packed once does, and fuses bias and activation. Fusing the residual as well gains
# nothing: the layer norm after it reads the residual in the time it would take alone.
_ONEDNN_DTYPES = (torch.float32, torch.bfloat16)
# oneDNN's names of an activation and its variant.
_ONEDNN_ACTIVATIONS = {None: ("none", ""), "gelu": ("gelu", "none"), "relu": ("relu", "")}


def _onednn_available(dtype: torch.dtype) -> bool:
    """Whether torch packs weights of `dtype`: bfloat16 takes instructions not every CPU has."""
    if dtype not in _ONEDNN_DTYPES or not torch.backends.mkldnn.is_available():
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Linear:
    """``y = f(x W^T + b)`` for ``x [T, I]``, ``weight [O, I]``, ``bias [O]``.

    On CPU tensors in float32 and bfloat16 the weight is packed once for oneDNN, where torch and the
    processor let it; elsewhere the product is `torch.nn.functional.linear`.

    Args:
        activation: f by its name in transformers' configs; None is the identity.
        backend: on ``cpu`` the C++ op calls oneDNN, with the number of rows rounded up where memory
            holds more rows, so that few numbers need code of their own.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, activation: str | None = None, backend: str = "torch"
    ) -> None:
        self.bias = bias
        self._native = backend == "cpu"
        self.packed = (
            weight.device.type == "cpu"
            and activation in _ONEDNN_ACTIVATIONS
            and _onednn_available(weight.dtype)
        )
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            self.activation, self.algorithm = _ONEDNN_ACTIVATIONS[activation]
        else:
            self.weight = weight
            self._apply = None if activation is None else ACT2FN[activation]

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed and self._native:
            return torch.ops.consistentee.linear.default(
                x, self.weight, self.bias, self.activation, self.algorithm
            )
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.default(
                x, self.weight, self.bias, self.activation, [], self.algorithm
            )
        y = F.linear(x, self.weight, self.bias)
        return y if self._apply is None else self._apply(y)
