"""The C++ ops on tensors of the CPU; `consistentee_ext.ops.reference` says what each computes."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext import backend  # noqa: F401 - loads them
from consistentee_ext.ops import (
    fakes,  # noqa: F401 - registers them
    reference,
)
from consistentee_ext.ops.checks import check_exit_step
from consistentee_ext.ops.onednn import has_native_product
from consistentee_ext.ops.schema import exit_arguments, form_arguments
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import PLAIN, AttentionForm, HeadWeights, LinearWeights


def embed(
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word_table: Tensor,
    type_table: Tensor,
    position_table: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Layer norm of the sum of three embeddings, ``[T, H]``."""
    out: Tensor = torch.ops.consistentee.embed.default(
        ids,
        types,
        positions,
        word_table=word_table,
        type_table=type_table,
        position_table=position_table,
        weight=weight,
        bias=bias,
        eps=eps,
    )
    return out


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """``f(x W^T + b)``; for oneDNN, rows are rounded up, so that few numbers need code."""
    if not has_native_product(weights):
        return reference.linear(x, weights)
    activation = weights.activation or "none"
    out: Tensor = torch.ops.consistentee.linear.default(
        x,
        weights.weight,
        weights.bias,
        activation=activation,
        scale=weights.scale,
        levels=weights.levels,
    )
    return out


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
    """Self-attention within each row, ``[Tq, H]``."""
    if form.cap is not None:
        return reference.attention(
            query, key, value, query_offsets, key_offsets, num_heads, form=form
        )
    others = {} if form == PLAIN else form_arguments(form)
    out: Tensor = torch.ops.consistentee.attention.default(
        query,
        key,
        value,
        query_offsets=query_offsets,
        key_offsets=key_offsets,
        num_heads=num_heads,
        **others,
    )
    return out


def add_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    """The norm of ``hidden + residual``; a layer norm is written over `hidden`."""
    if bias is None:
        return reference.add_norm(hidden, residual, weight, bias, eps)
    torch.ops.consistentee.add_norm_.default(hidden, residual, weight=weight, bias=bias, eps=eps)
    return hidden


def pool(hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """One vector a row, ``[B, H]``: cls, last or mean."""
    if pooling != "mean":
        return reference.pool(hidden, cu_seqlens, pooling)
    out: Tensor = torch.ops.consistentee.mean_pool.default(hidden, cu_seqlens)
    return out


def exit_step(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitResults,
) -> PackedBatch:
    """Classify, decide, write the results; the batch of the rows that stay."""
    try:
        survivors = torch.ops.consistentee.exit_step.default(
            *batch, pooled, **exit_arguments(weights, decision, results)
        )
    except RuntimeError:
        # Hot path: the Python checks run only after the op has refused, to name the argument. The
        # op writes nothing before it has checked everything.
        check_exit_step(batch, pooled, weights, decision, results)
        raise
    return PackedBatch(*survivors) if survivors[1].numel() else batch
