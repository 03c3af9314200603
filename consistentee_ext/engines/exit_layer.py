"""A layer with an exit, on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.exits.exit import Exit
from consistentee_ext.layers import Block
from consistentee_ext.ops import DeviceOps
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch


def run_exit_layer(
    block: Block,
    exit_: Exit,
    batch: PackedBatch,
    max_length: int,
    ops: DeviceOps,
    decision: ExitDecision,
    results: ExitResults,
    tickets: Tensor,
    totals: Tensor,
    room: PackedBatch | None = None,
    firsts: Tensor | None = None,
) -> PackedBatch:
    """A block, the pooling of its rows, and the exit step behind it.

    Returns the survivors, in `room` where the caller has some, with room for all rows.
    """
    weight, bias, eps = block.mlp_norm
    is_plain = not block.norm_first and block.convolution is None and bias is not None
    if not (is_plain and exit_.is_plain):
        out = block(batch, ops, max_length)
        hidden, product = out.hidden, exit_.product(out, ops, _pool, firsts)
    else:
        assert bias is not None
        assert exit_.pooler is not None
        out, hidden = block.before_last_norm(batch, ops, max_length)
        pooled = ops.add_norm_pool(
            hidden,
            out.hidden,
            weight,
            bias,
            eps,
            out.cu_seqlens,
            1 if block.attention.one_query else max_length,
            exit_.pooling,
            tickets,
            out.row_ids,
            firsts,
        )
        product = ops.linear(pooled, exit_.pooler)
        out = out._replace(hidden=hidden)
    if room is None:
        survivors = PackedBatch(*map(torch.empty_like, out))
    else:
        survivors = room._replace(hidden=room.hidden[: len(hidden)])
    ops.exit_step_async(
        out,
        product,
        exit_.weights,
        decision,
        results,
        tickets,
        totals,
        survivors,
    )
    return survivors


def _pool(hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """`consistentee_ext.ops.reference.pool` without a wait: absent rows and tokens behind the last
    row may have any value.
    """
    if pooling == "cls":
        return hidden[cu_seqlens[:-1]]
    if pooling == "last":
        return hidden[cu_seqlens[1:] - 1]
    offsets = cu_seqlens.long()
    means = torch.segment_reduce(hidden.float(), "mean", offsets=offsets, axis=0, unsafe=True)
    return means.to(hidden.dtype)
