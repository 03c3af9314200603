"""Both kinds of norms, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Of the last dimension; see `consistentee_ext.weights.NormWeights`. Arithmetic is float32."""
    if bias is None:
        return rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)
    return layer_norm(x, weight.shape, weight, bias, eps)
