"""The CUDA ops; `consistentee_ext.ops.reference` says what each computes. None waits."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.ops.cpu import add_norm  # one op, which its tensors' device dispatches
from consistentee_ext.ops.device_attention import attention
from consistentee_ext.ops.reference import embed, linear
from consistentee_ext.ops.schema import exit_arguments
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

__all__ = ["add_norm", "add_norm_pool", "attention", "embed", "exit_step_async", "linear"]


def add_norm_pool(
    hidden: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    cu_seqlens: Tensor,
    max_length: int,
    pooling: str,
    tickets: Tensor,
    row_ids: Tensor | None = None,
    first_lengths: Tensor | None = None,
) -> Tensor:
    """`add_norm` over `hidden`, and the pooling of its rows, in one launch."""
    out: Tensor = torch.ops.consistentee.add_norm_pool_.default(
        hidden,
        residual,
        weight=weight,
        bias=bias,
        eps=eps,
        cu_seqlens=cu_seqlens,
        max_length=max_length,
        pooling=pooling,
        tickets=tickets,
        row_ids=row_ids,
        first_lengths=first_lengths,
    )
    return out


def exit_step_async(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitResults,
    tickets: Tensor,
    totals: Tensor,
    out: PackedBatch,
) -> None:
    """The exit step, in two launches."""
    torch.ops.consistentee.exit_step_async.default(
        *batch,
        pooled,
        **exit_arguments(weights, decision, results),
        tickets=tickets,
        totals=totals,
        out_hidden=out.hidden,
        out_cu_seqlens=out.cu_seqlens,
        out_row_ids=out.row_ids,
    )
