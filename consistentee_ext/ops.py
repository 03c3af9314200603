"""The engine's operations: checked arguments, then the backend asked for.

`consistentee_ext.reference` says what each one computes. On the ``torch`` backend it is also what
runs; on ``cpu`` the C++ op of the same name does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from consistentee_ext import device_attention, reference
from consistentee_ext.backend import availability
from consistentee_ext.criteria import CRITERIA, POLICY_INPUTS, check_criterion
from consistentee_ext.packed import (
    ExitDecision,
    ExitState,
    HeadWeights,
    LayerNormWeights,
    PackedBatch,
)

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICE_BACKENDS = ("cuda", "triton")  # their tensors are on a GPU
# As csrc/include/consistentee/exit_head.h numbers them.
POLICY_CODES = {None: 0} | {name: code for code, name in enumerate(POLICY_INPUTS, start=1)}
CRITERION_CODES = {name: code for code, name in enumerate(CRITERIA)}


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


def embed(
    tokens: tuple[Tensor, Tensor, Tensor],
    tables: tuple[Tensor, Tensor, Tensor],
    norm: LayerNormWeights,
    backend: str,
) -> Tensor:
    """Layer norm of the sum of three embeddings, ``[T, H]``.

    Args:
        tokens: word, segment and position ids, each ``[T]`` int64.
        tables: of the same three, each ``[entries, H]``.
        norm: weights in the dtype of the tables.
        backend: on all but ``"cpu"`` PyTorch's own operations, as this happens once a pass.
    """
    run = torch.ops.consistentee.embed.default if backend == "cpu" else reference.embed
    return run(*tokens, *tables, *norm)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    num_heads: int,
    backend: str,
    max_queries: int | None = None,
    max_keys: int | None = None,
) -> Tensor:
    """Self-attention within each row, see `consistentee_ext.reference.attention`.

    On a device the last two bound the numbers of queries and of keys of a row.
    """
    arguments = (query, key, value, query_offsets, key_offsets, num_heads)
    if backend == "torch":
        return reference.attention(*arguments)
    if backend == "cpu":
        return torch.ops.consistentee.attention.default(*arguments)
    assert max_queries is not None
    assert max_keys is not None
    return device_attention.attention(*arguments, max_queries, max_keys)


def add_norm(hidden: Tensor, residual: Tensor, norm: LayerNormWeights, backend: str) -> Tensor:
    """Layer norm of ``hidden + residual``, ``[T, H]``; may be written over `hidden`."""
    if backend == "torch":
        return reference.add_norm(hidden, residual, *norm)
    _device_op("add_norm_", backend)(hidden, residual, *norm)
    return hidden


def add_norm_pool(
    hidden: Tensor,
    residual: PackedBatch,
    norm: LayerNormWeights,
    max_length: int,
    pooling: str,
    counters: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """On a device, `add_norm` and the pooling of its rows ``[B, H]`` in one launch.

    Args:
        residual: the batch whose tokens are added.
        max_length: no row is longer.
        pooling: ``"cls"`` or ``"mean"``.
        counters: ``[B]`` int32 zeros, and zeros again afterwards.
    """
    pooled = _device_op("add_norm_pool_", backend)(
        hidden,
        residual.hidden,
        *norm,
        residual.cu_seqlens,
        max_length,
        pooling == "mean",
        counters,
    )
    return hidden, pooled


def pool(batch: PackedBatch, pooling: str, backend: str) -> Tensor:
    """One vector a row, ``[B, H]`` in the dtype of ``batch.hidden``: cls or mean."""
    if backend != "cpu" or pooling == "cls":
        return reference.pool(batch.hidden, batch.cu_seqlens, pooling)
    return torch.ops.consistentee.mean_pool.default(batch.hidden, batch.cu_seqlens)


def compact(batch: PackedBatch, keep: Tensor, backend: str) -> PackedBatch:
    """The rows of `batch` where ``keep [B]`` bool is true, in their order."""
    _check_batch(batch)
    _check("keep", keep, tuple(batch.row_ids.shape), torch.bool)
    if backend == "torch":
        return reference.compact(batch, keep)
    return PackedBatch(*torch.ops.consistentee.compact.default(*batch, keep))


def exit_step(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitState,
    backend: str,
) -> PackedBatch:
    """Classify B rows, decide which leave, write their results; returns the batch that stays.

    ``state = tanh(pooled)``, ``logits = C state + c``, and a row leaves where its score is above
    the threshold, or at the last layer (`consistentee_ext.reference.exit_step`).

    Args:
        batch: B rows; ``row_ids`` index `results`.
        pooled: ``[B, H]`` in the dtype of ``batch.hidden``: the pooler's product ``W x + b``.
        weights: of the layer's head, float32.
        decision: criterion, threshold and layer.
        results: of the N rows, written in place.
        backend: ``"cpu"`` or ``"torch"``.

    Raises:
        TypeError, ValueError: a tensor of another dtype, shape or device than stated.
    """
    arguments = (batch, pooled, weights, decision, results)
    if backend == "torch":
        _check_exit_step(*arguments)
        return reference.exit_step(*arguments)
    try:
        survivors = torch.ops.consistentee.exit_step.default(*_flat(*arguments))
    except RuntimeError:
        # The op writes nothing before all is checked. It is called at every layer of every batch:
        # only where it refuses is it worth the time to say so in Python's words.
        _check_exit_step(*arguments)
        raise
    return PackedBatch(*survivors) if survivors[1].numel() else batch


def exit_step_ahead(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitState,
    workspace: tuple[Tensor, Tensor],
    backend: str,
) -> PackedBatch:
    """`exit_step` on a device that the host does not wait for: the batch has room for all rows.

    Offsets go on with the number of tokens that stay, row ids with -1, which is nobody's.

    Args:
        workspace: counters ``[B]`` int32 zeros, and zeros again afterwards; and totals ``[2]``
            int32, where the numbers of rows and tokens that stay are written, on the device or
            pinned on the host.
    """
    arguments = _flat(batch, pooled, weights, decision, results)
    return PackedBatch(*_device_op("exit_step_ahead", backend)(*arguments, *workspace))


def _flat(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitState,
) -> tuple[Any, ...]:
    """The arguments of an exit step in the order of its schema; -1 is no criterion's code."""
    policy_code = POLICY_CODES[weights.policy_input]
    criterion_code = CRITERION_CODES.get(decision.criterion, -1)
    return (*batch, pooled, *weights[:6], policy_code, criterion_code, *decision[1:], *results)


def _device_op(name: str, backend: str) -> Callable[..., Any]:
    """The compiled op, or the Triton function, of that name."""
    if backend == "triton":
        # Not everybody has triton.
        return getattr(importlib.import_module("consistentee_ext.triton_kernels"), name)
    return getattr(torch.ops.consistentee, name).default


def _check_exit_step(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitState,
) -> None:
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
    check_criterion(decision.criterion)


def _register_fakes() -> None:
    """Shapes and dtypes of the compiled ops' results, for torch.compile and export."""

    def survivors(hidden: Tensor, cu_seqlens: Tensor, row_ids: Tensor) -> tuple[Tensor, ...]:
        new_size = torch.library.get_ctx().new_dynamic_size
        return (
            hidden.new_empty(new_size(), hidden.shape[1]),
            cu_seqlens.new_empty(new_size()),
            row_ids.new_empty(new_size()),
        )

    @torch.library.register_fake("consistentee::pack")
    def _(input_ids: Tensor, *rest: object) -> tuple[Tensor, ...]:
        rows = input_ids.shape[0]
        tokens = torch.library.get_ctx().new_dynamic_size()
        packed = (input_ids.new_empty(tokens, dtype=torch.int64) for _ in range(3))
        cu_seqlens = input_ids.new_empty(rows + 1, dtype=torch.int32)
        return (*packed, cu_seqlens, input_ids.new_empty(rows, dtype=torch.int64))

    @torch.library.register_fake("consistentee::embed")
    def _(ids: Tensor, types: Tensor, positions: Tensor, words: Tensor, *rest: object) -> Tensor:
        return words.new_empty(ids.shape[0], words.shape[1])

    @torch.library.register_fake("consistentee::linear")
    def _(x: Tensor, weight: Tensor, bias: Tensor, *rest: object) -> Tensor:
        return x.new_empty(x.shape[0], bias.shape[0])

    @torch.library.register_fake("consistentee::attention")
    def _(query: Tensor, *rest: object) -> Tensor:
        return query.new_empty(query.shape)

    @torch.library.register_fake("consistentee::add_norm_")
    def _(hidden: Tensor, *rest: object) -> None:
        return None

    @torch.library.register_fake("consistentee::mean_pool")
    def _(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
        return hidden.new_empty(cu_seqlens.shape[0] - 1, hidden.shape[1])

    @torch.library.register_fake("consistentee::compact")
    def _(hidden: Tensor, cu_seqlens: Tensor, row_ids: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
        return survivors(hidden, cu_seqlens, row_ids)

    @torch.library.register_fake("consistentee::classify")
    def _(ids: Tensor, *rest: object) -> None:
        return None

    @torch.library.register_fake("consistentee::exit_step")
    def _(hidden: Tensor, cu_seqlens: Tensor, row_ids: Tensor, *rest: object) -> tuple[Tensor, ...]:
        return survivors(hidden, cu_seqlens, row_ids)


if availability("cpu", torch.device("cpu")).usable:
    _register_fakes()
