"""A layer with an exit, on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.exits.exits import Exit
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
) -> PackedBatch:
    """A block, the pooling of its rows, and the exit step behind it.

    Returns the survivors, in `room` where the caller has some, with room for all rows.
    """
    if block.norm_first:
        out = block(batch, ops, max_length)
        hidden, pooled = out.hidden, _pool(out, exit_.pooling)
    else:
        out, hidden = block.before_last_norm(batch, ops, max_length)
        pooled = ops.add_norm_pool(
            hidden,
            out.hidden,
            *block.mlp_norm,
            out.cu_seqlens,
            1 if block.attention.first_tokens_only else max_length,
            exit_.pooling,
            tickets,
        )
        out = out._replace(hidden=hidden)
    if room is None:
        survivors = PackedBatch(*map(torch.empty_like, out))
    else:
        survivors = room._replace(hidden=room.hidden[: len(hidden)])
    ops.exit_step_async(
        out,
        ops.linear(pooled, exit_.pooler),
        exit_.weights,
        decision,
        results,
        tickets,
        totals,
        survivors,
    )
    return survivors


def _pool(batch: PackedBatch, pooling: str) -> Tensor:
    """`consistentee_ext.ops.reference.pool` without a wait: absent rows and tokens behind the last
    row may have any value.
    """
    if pooling == "cls":
        return batch.first_tokens().hidden
    offsets = batch.cu_seqlens.long()
    means = torch.segment_reduce(batch.hidden.float(), "mean", offsets=offsets, axis=0, unsafe=True)
    return means.to(batch.hidden.dtype)
