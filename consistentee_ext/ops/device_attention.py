"""Attention on packed tokens of a device, whose host does not wait to learn their lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.ops.attention_form import attend
from consistentee_ext.weights import PLAIN, AttentionForm

try:
    from torch.nn.attention import varlen
except ImportError:  # not every torch has it
    varlen = None  # type: ignore[assignment]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    num_heads: int,
    max_queries: int | None = None,
    max_keys: int | None = None,
    form: AttentionForm = PLAIN,
) -> Tensor:
    """`consistentee_ext.ops.reference.attention`, which needs the bounds of the rows here.

    Flash attention on packed tokens where torch has it, for BERT's form alone, else padded
    attention. Tokens behind the last row may have any value: the batch is as long as the last count
    the host knows.
    """
    assert max_queries is not None
    assert max_keys is not None
    plain = form == PLAIN
    if plain and varlen is not None and query.is_cuda and query.dtype != torch.float32:
        q, k, v = (tokens.unflatten(1, (num_heads, -1)) for tokens in (query, key, value))
        context = varlen.varlen_attn(q, k, v, query_offsets, key_offsets, max_queries, max_keys)
        assert isinstance(context, Tensor)  # as no auxiliary result is asked for
        return context.flatten(1)
    kv_heads = form.num_kv_heads or num_heads
    present = torch.arange(max_keys, device=key.device) < key_offsets.diff()[:, None]
    query_places = torch.arange(max_queries, device=key.device)
    if form.last_queries:
        first = key_offsets.diff() - query_offsets.diff()
        query_places = (query_places + first[:, None]).clamp(0, max_keys - 1)
    attended = attend(
        _pad(query, query_offsets, max_queries, num_heads),
        _pad(key, key_offsets, max_keys, kv_heads),
        _pad(value, key_offsets, max_keys, kv_heads),
        query_places,
        form,
        present,
    )
    tokens = torch.arange(len(query), device=query.device)
    rows = torch.searchsorted(query_offsets[1:], tokens, right=True, out_int32=True)
    rows.clamp_(max=len(query_offsets) - 2)
    places = (tokens - query_offsets[rows]).clamp(max=max_queries - 1)
    return attended.transpose(1, 2)[rows, places].flatten(1)


def _pad(tokens: Tensor, offsets: Tensor, length: int, num_heads: int) -> Tensor:
    """``[T, H]`` to ``[B, heads, length, d]``, zeros beyond a row's end: a NaN there would spread,
    as 0 times NaN is NaN.
    """
    columns = torch.arange(length, device=tokens.device)
    places = (offsets[:-1, None] + columns).clamp(max=len(tokens) - 1)
    beyond = columns >= offsets.diff()[:, None]
    padded = tokens[places].masked_fill(beyond[..., None], 0)
    heads: Tensor = padded.unflatten(2, (num_heads, -1))
    return heads.transpose(1, 2)
