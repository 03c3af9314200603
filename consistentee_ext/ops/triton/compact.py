"""Where the rows that stay go, and the copy of their tokens."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from consistentee_ext.ops.triton.common import FUSED, TILE
from consistentee_ext.packed import PackedBatch

PLAN_ROWS = 1024  # that the plan sums at a time


class SurvivorPlan(NamedTuple):
    """Which rows stay and where they go: csrc/kernels/cuda/plan.cuh has the same."""

    keep: Tensor  # [B] int32, 1 or 0
    offsets: Tensor  # [B] int32: a row's first token in the new batch, -1 where the row leaves
    cu_seqlens: Tensor  # [B+1] int32
    row_ids: Tensor  # [B] int64
    totals: Tensor  # [2] int32

    @classmethod
    def to(cls, out: PackedBatch, totals: Tensor) -> SurvivorPlan:
        """A plan that is written to `out`."""
        rows = len(out.row_ids)
        keep, offsets = (out.cu_seqlens.new_empty(rows) for _ in range(2))
        return cls(keep, offsets, out.cu_seqlens, out.row_ids, totals)


@triton.jit
def plan_survivors(
    plan: tl.tuple, cu_seqlens: tl.tensor, row_ids: tl.tensor, rows: tl.tensor, block: tl.constexpr
) -> None:
    """Where the rows that stay go: a prefix sum over them, in their order."""
    stayed, tokens = 0, 0
    for first in range(0, rows, block):
        row = first + tl.arange(0, block)
        stays = tl.load(plan.keep + row, mask=row < rows, other=0, volatile=True) != 0
        length = tl.load(cu_seqlens + row + 1, mask=stays, other=0)
        length -= tl.load(cu_seqlens + row, mask=stays, other=0)
        place = stayed + tl.cumsum(stays.to(tl.int32), axis=0)
        end = tokens + tl.cumsum(length, axis=0)
        tl.store(plan.row_ids + place - 1, tl.load(row_ids + row, mask=stays), mask=stays)
        tl.store(plan.cu_seqlens + place, end, mask=stays)
        tl.store(plan.offsets + row, tl.where(stays, end - length, -1), mask=row < rows)
        stayed += tl.sum(stays.to(tl.int32), axis=0)
        tokens += tl.sum(length, axis=0)
    for first in range(0, rows, block):
        row = first + tl.arange(0, block)
        beyond = (row >= stayed) & (row < rows)
        tl.store(plan.row_ids + row, -1, mask=beyond)
        tl.store(plan.cu_seqlens + row + 1, tokens, mask=beyond)
    tl.store(plan.cu_seqlens, 0)
    tl.store(plan.totals, stayed)
    tl.store(plan.totals + 1, tokens)


@triton.jit
def _copy_rows(
    hidden: tl.tensor,
    cu_seqlens: tl.tensor,
    offsets: tl.tensor,
    out: tl.tensor,
    hidden_size: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Grid (B, splits): the programs of a row share its tokens, which lie side by side."""
    row, split = tl.program_id(0), tl.program_id(1)
    offset = tl.load(offsets + row)
    if offset >= 0:
        begin = tl.load(cu_seqlens + row)
        size = (tl.load(cu_seqlens + row + 1) - begin) * hidden_size
        source = hidden + begin.to(tl.int64) * hidden_size
        target = out + offset.to(tl.int64) * hidden_size
        for first in range(split * block, size, tl.num_programs(1) * block):
            i = first + tl.arange(0, block)
            tl.store(target + i, tl.load(source + i, mask=i < size), mask=i < size)


def copy_survivors(batch: PackedBatch, plan: SurvivorPlan, out: Tensor) -> None:
    """Copy the tokens of the rows that stay to their places in ``out [T, H]``."""
    rows, (tokens, size) = len(batch.row_ids), batch.hidden.shape
    if batch.hidden.numel() == 0:
        return
    # One tile a program on a row of mean length; how many rows stay is not known here.
    splits = min(max(tokens * size // (rows * TILE), 1), 64)
    _copy_rows[(rows, splits)](
        batch.hidden, batch.cu_seqlens, plan.offsets, out, hidden_size=size, block=TILE, **FUSED
    )
