"""Self-attention within each row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import PackedBatch
from consistentee_ext.weights import LinearWeights


@dataclass(frozen=True)
class Attention:
    """``softmax(Q K^T / sqrt(H / heads)) V``, and the product behind it.

    Attributes:
        query: gives queries, keys and values side by side; the queries alone, where there is a
            `key_value`.
        key_value: gives keys and values side by side. The attention then has one query a row, its
            first token: what a last layer needs whose exit reads that token alone.
        out: the product behind the attention.
        num_heads: a divisor of H.
    """

    query: LinearWeights
    key_value: LinearWeights | None
    out: LinearWeights
    num_heads: int

    @property
    def first_tokens_only(self) -> bool:
        """Whether the first token of each row is the only query."""
        return self.key_value is not None

    def __call__(
        self, batch: PackedBatch, ops: LayerOps, max_length: int | None = None
    ) -> tuple[PackedBatch, Tensor]:
        """The tokens that have queries, as they came, and what attention adds to them ``[Tq, H]``.

        On a device, `max_length` bounds the rows' lengths.
        """
        if self.key_value is None:
            out, max_queries = batch, max_length
            query, key, value = ops.linear(batch.hidden, self.query).chunk(3, dim=-1)
        else:
            out, max_queries = batch.first_tokens(), 1
            query = ops.linear(out.hidden, self.query)
            key, value = ops.linear(batch.hidden, self.key_value).chunk(2, dim=-1)
        offsets, bounds = (out.cu_seqlens, batch.cu_seqlens), (max_queries, max_length)
        context = ops.attention(query, key, value, *offsets, self.num_heads, *bounds)
        return out, ops.linear(context, self.out)
