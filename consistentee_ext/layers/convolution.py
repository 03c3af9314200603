"""A convolution over the tokens of each row, beside a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import PackedBatch
from consistentee_ext.weights import LinearWeights, NormWeights


@dataclass(frozen=True)
class Convolution:
    """``norm(y + product(x_-w, ..., x_w))``: x are the tokens before the block, y those behind it.

    Outside its row a neighbour is 0.

    Attributes:
        product: of 2w + 1 neighbours side by side, ``[H, (2w + 1) H]``.
        norm: of the sum.
    """

    product: LinearWeights
    norm: NormWeights

    def convolve(self, batch: PackedBatch, ops: LayerOps) -> Tensor:
        """The product, ``[T, H]``."""
        hidden, offsets = batch.hidden, batch.cu_seqlens
        width = self.product.shape[1] // hidden.shape[1] // 2
        tokens = torch.arange(len(hidden), device=hidden.device)
        row = torch.bucketize(tokens, offsets[1:], right=True)
        start, end = offsets[row], offsets[row + 1]
        parts = []
        for shift in range(-width, width + 1):
            place = tokens + shift
            inside = (place >= start) & (place < end)
            neighbour = hidden[place.clamp(0, len(hidden) - 1)]
            parts.append(torch.where(inside[:, None], neighbour, 0.0))
        return ops.linear(torch.cat(parts, dim=1), self.product)
