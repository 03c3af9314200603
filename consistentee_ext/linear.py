"""Linear layers for inference; the one file that names torch's private oneDNN operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# In float32 torch's own CPU product does not use AVX-512 on every processor that has it; oneDNN
# with weights packed once does, and fuses bias and GELU. Fusing the residual as well gains nothing:
# the layer norm after it reads the residual in the time it would take alone.
_ONEDNN_DTYPES = (torch.float32, torch.bfloat16)


def _onednn_available() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)


def _rows_computed(rows: int) -> int:
    """`rows` rounded up, by at most 31 and seldom by more than 2%.

    oneDNN generates code for each number of rows it meets, in 0.5 to 6 ms, and keeps the last 1,024
    products. In a packed batch that loses rows the number is new at nearly every layer.
    """
    step = 8 if rows < 512 else 16 if rows < 1024 else 32
    return -(-rows // step) * step


def _with_more_rows(x: Tensor) -> Tensor:
    """The rows of ``x [T, I]`` and those behind them in memory up to a round number, if any are."""
    rows, size = _rows_computed(x.shape[0]), x.shape[1]
    end = (x.storage_offset() + rows * size) * x.element_size()
    if rows == x.shape[0] or not x.is_contiguous() or end > x.untyped_storage().nbytes():
        return x
    return x.as_strided((rows, size), (size, 1))


class Linear:
    """``y = gelu?(x W^T + b)`` for ``x [T, I]``, ``weight [O, I]``, ``bias [O]``.

    On CPU tensors in float32 and bfloat16 the weight is packed once for oneDNN, where torch has it;
    elsewhere the product is `torch.nn.functional.linear`. Where more rows lie behind x in memory,
    as behind the results of this package's ops, some of them are computed as well, and dropped.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        self.bias = bias
        self.gelu = gelu
        self.packed = (
            weight.device.type == "cpu" and weight.dtype in _ONEDNN_DTYPES and _onednn_available()
        )
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self.packed else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            activation, algorithm = ("gelu", "none") if self.gelu else ("none", "")
            y = torch.ops.mkldnn._linear_pointwise.default(
                _with_more_rows(x), self.weight, self.bias, activation, [], algorithm
            )
            return y[: x.shape[0]]
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if self.gelu else y
