"""Self-attention over packed rows: no row sees another, no padding is computed."""

from __future__ import annotations

from itertools import groupby

from torch import Tensor
from torch.nn import functional as F


def packed_attention(qkv: Tensor, lengths: list[int], num_heads: int) -> Tensor:
    """``softmax(Q K^T / sqrt(d)) V`` within each row, ``[T, 3H]`` to ``[T, H]``.

    Neighbouring rows of one length run as a batch: callers that sort by length get larger calls.

    Args:
        qkv: ``[T, 3H]``, queries, keys and values side by side, each of `num_heads` heads.
        lengths: tokens of each of the B rows.
        num_heads: heads of size ``d = H / num_heads``.
    """
    width = qkv.shape[1] // 3
    context = qkv.new_empty(qkv.shape[0], width)
    start = 0
    for length, rows in groupby(lengths):
        count = sum(1 for _ in rows)
        stop = start + count * length
        heads = qkv[start:stop].view(count, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        context[start:stop].view(count, length, num_heads, -1).copy_(attended.transpose(1, 2))
        start = stop
    return context
