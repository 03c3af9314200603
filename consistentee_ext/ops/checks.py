"""Checks of the operations' arguments, with errors that name them."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee_ext.criteria import check_criterion
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_exit_step(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitResults,
) -> None:
    """Raise unless the arguments are as `consistentee_ext.ops.reference.exit_step` states.

    Raises:
        TypeError, ValueError: a tensor of another dtype, shape or device.
    """
    _check_batch(batch)
    rows, hidden_size = batch.row_ids.numel(), batch.hidden.shape[1]
    _check("pooled", pooled, (rows, hidden_size), batch.hidden.dtype)
    if results.logits.dim() != 2:
        raise ValueError(
            f"results.logits: expected shape [N, C], got {tuple(results.logits.shape)}"
        )
    total, classes = results.logits.shape
    _check("results.logits", results.logits, (total, classes), torch.float32)
    _check("classifier_weight", weights.classifier_weight, (classes, hidden_size), torch.float32)
    _check("classifier_bias", weights.classifier_bias, (classes,), torch.float32)
    check_criterion(decision.criterion, weights.multi_label)
    _check("decision.thresholds", decision.thresholds, (total,), torch.float32)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"{name}: expected {wanted}, got {str(tensor.dtype).removeprefix('torch.')}"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def _check_batch(batch: PackedBatch) -> None:
    hidden, cu_seqlens, row_ids = batch
    if not isinstance(hidden, Tensor) or hidden.dim() != 2:
        raise ValueError("batch.hidden: expected a tensor of shape [T, H]")
    _check("batch.hidden", hidden, tuple(hidden.shape), *FLOAT_DTYPES)
    _check("batch.row_ids", row_ids, (row_ids.numel(),), torch.int64)
    _check("batch.cu_seqlens", cu_seqlens, (row_ids.numel() + 1,), torch.int32)
    for name, tensor in (("cu_seqlens", cu_seqlens), ("row_ids", row_ids)):
        if tensor.device != hidden.device:
            raise ValueError(f"batch.{name}: expected device {hidden.device}, got {tensor.device}")
