"""Self-attention within each row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import PackedBatch
from consistentee_ext.weights import PLAIN, AttentionForm, LinearWeights


@dataclass(frozen=True)
class Attention:
    """``softmax(scale * Q K^T + ...) V``, and the product behind it.

    Attributes:
        query: gives queries, keys and values side by side; the queries alone, where there is a
            `key_value`.
        key_value: gives keys and values side by side. The attention then has one query a row, its
            first token, or its last one by the form's `last_queries`: what a last layer needs whose
            exit reads that token alone.
        out: the product behind the attention.
        num_heads: of the queries.
        head_size: d.
        form: what differs from BERT's attention.
    """

    query: LinearWeights
    key_value: LinearWeights | None
    out: LinearWeights
    num_heads: int
    head_size: int
    form: AttentionForm = PLAIN

    @property
    def one_query(self) -> bool:
        """Whether each row has one query alone."""
        return self.key_value is not None

    def queried(self, batch: PackedBatch) -> PackedBatch:
        """The tokens that have queries."""
        if not self.one_query:
            return batch
        return batch.last_tokens() if self.form.last_queries else batch.first_tokens()

    def __call__(
        self, batch: PackedBatch, ops: LayerOps, max_length: int | None = None
    ) -> tuple[PackedBatch, Tensor]:
        """The tokens that have queries, as they came, and what attention adds to them ``[Tq, H]``.

        On a device, `max_length` bounds the rows' lengths.
        """
        size, form = self.head_size, self.form
        of_queries, of_keys = self.num_heads * size, (form.num_kv_heads or self.num_heads) * size
        out = self.queried(batch)
        if self.key_value is None:
            max_queries = max_length
            product = ops.linear(batch.hidden, self.query)
            query, key, value = product.split([of_queries, of_keys, of_keys], dim=-1)
        else:
            max_queries = 1
            query = ops.linear(out.hidden, self.query)
            key, value = ops.linear(batch.hidden, self.key_value).split(of_keys, dim=-1)
        offsets, bounds = (out.cu_seqlens, batch.cu_seqlens), (max_queries, max_length)
        context = ops.attention(query, key, value, *offsets, self.num_heads, *bounds, form)
        return out, ops.linear(context, self.out)
