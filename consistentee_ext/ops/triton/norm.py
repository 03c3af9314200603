"""Layer norm of a sum; where an exit follows, the rows' pooling as well."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from consistentee_ext.ops.triton.common import FUSED, TILE, ends_last
from consistentee_ext.weights import NormWeights

POOL_TOKENS = 32  # of a row, that a program normalises and adds up


@triton.jit
def _normalize(
    hidden: tl.tensor,
    residual: tl.tensor,
    norm: tl.tuple,
    tokens: tl.tensor,
    present: tl.tensor,
    hidden_size: tl.constexpr,
    block: tl.constexpr,
) -> tl.tensor:
    """Layer norm of the sum at `tokens`, in place; returns what was stored, [tokens, block]."""
    columns = tl.arange(0, block)
    inside = columns < hidden_size
    mask = present[:, None] & inside[None, :]
    places = tokens.to(tl.int64)[:, None] * hidden_size + columns[None, :]
    total = tl.load(hidden + places, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(residual + places, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=1) / hidden_size
    centred = tl.where(mask, total - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / hidden_size
    scale = tl.div_rn(1.0, tl.sqrt_rn(variance + norm.eps))
    weight = tl.load(norm.weight + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(norm.bias + columns, mask=inside, other=0.0).to(tl.float32)
    normal = centred * scale[:, None] * weight[None, :] + bias[None, :]
    normal = normal.to(hidden.dtype.element_ty)
    tl.store(hidden + places, normal, mask=mask)
    return normal


@triton.jit(do_not_specialize=["count"])
def _add_norm_tokens(
    hidden: tl.tensor,
    residual: tl.tensor,
    norm: tl.tuple,
    count: tl.tensor,
    hidden_size: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Grid (ceil(T / tile)): `tile` tokens a program."""
    tokens = tl.program_id(0) * tile + tl.arange(0, tile)
    _normalize(hidden, residual, norm, tokens, tokens < count, hidden_size, block)


@triton.jit
def _add_norm_pool(
    hidden: tl.tensor,
    residual: tl.tensor,
    norm: tl.tuple,
    cu_seqlens: tl.tensor,
    partial: tl.tensor,
    tickets: tl.tensor,
    pooled: tl.tensor,
    hidden_size: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    span: tl.constexpr,
    mean: tl.constexpr,
) -> None:
    """Grid (B, splits): `span` tokens of a row a program, `tile` at a time.

    The program of a row that ends last adds up `partial` [B, splits, H] in the order of the tokens.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row_begin, row_end = tl.load(cu_seqlens + row), tl.load(cu_seqlens + row + 1)
    begin = row_begin + split * span
    if begin < row_end:
        end = tl.minimum(begin + span, row_end)
        columns = tl.arange(0, block)
        inside = columns < hidden_size
        out = pooled + row * hidden_size + columns
        total = tl.zeros([block], tl.float32)
        for first in range(begin, end, tile):
            tokens = first + tl.arange(0, tile)
            present = tokens < end
            normal = _normalize(hidden, residual, norm, tokens, present, hidden_size, block)
            if mean:
                total += tl.sum(tl.where(present[:, None], normal.to(tl.float32), 0.0), axis=0)
            else:
                to_row = tl.broadcast_to(out[None, :], [tile, block])
                tl.store(to_row, normal, mask=(tokens == row_begin)[:, None] & inside[None, :])
        if mean:
            sums = partial + row * tl.num_programs(1) * hidden_size + columns
            tl.store(sums + split * hidden_size, total, mask=inside)
            blocks = tl.cdiv(row_end - row_begin, span)
            if ends_last(tickets + row, blocks):
                total = tl.zeros([block], tl.float32)
                for other in range(blocks):
                    place = sums + other * hidden_size
                    total += tl.load(place, mask=inside, other=0.0, volatile=True)
                total = tl.div_rn(total, (row_end - row_begin).to(tl.float32))
                tl.store(out, total.to(pooled.dtype.element_ty), mask=inside)
                tl.store(tickets + row, 0)


def _norm_shape(hidden_size: int, most_tokens: int) -> dict[str, int]:
    """Sizes of a tile of tokens; at least as many elements as threads, so that in place is safe."""
    block = max(16, triton.next_power_of_2(hidden_size))
    tile = max(1, min(most_tokens, TILE // block))
    return {"block": block, "tile": tile, "num_warps": 4 if block <= TILE else 8}


def add_norm(hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of a sum, in place: ``hidden = norm(hidden + residual) * weight + bias``.

    Args:
        hidden: ``[T, H]`` float32, bfloat16 or float16; statistics in float32, rounded once.
        residual: ``[T, H]``.
        weight: ``[H]``, and so `bias`, in the dtype of `hidden`.
        eps: added to the variance.
    """
    if hidden.numel() == 0:
        return hidden
    tokens, size = hidden.shape
    shape = _norm_shape(size, TILE)
    grid = (triton.cdiv(tokens, shape["tile"]),)
    with torch.cuda.device_of(hidden):
        norm = NormWeights(weight, bias, eps)
        _add_norm_tokens[grid](hidden, residual, norm, tokens, hidden_size=size, **shape, **FUSED)
    return hidden


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
) -> Tensor:
    """`add_norm`, and one vector a row: the mean of its normalised tokens, or the first of them.

    Args:
        cu_seqlens: ``[B+1]`` int32; a row may be empty, its vector is then unspecified.
        max_length: no row has more tokens.
        pooling: mean, of the rounded values, in float32, rounded once; or cls, the first token.
        tickets: ``[B]`` int32 or more, zeros before and after.

    Returns:
        ``[B, H]`` in the dtype of `hidden`.
    """
    rows, size = len(cu_seqlens) - 1, hidden.shape[1]
    pooled = hidden.new_empty(rows, size)
    if pooled.numel() == 0 or hidden.numel() == 0:
        return pooled
    mean = pooling == "mean"
    splits = triton.cdiv(max_length, POOL_TOKENS)
    partial = hidden.new_empty(rows if mean else 0, splits, size, dtype=torch.float32)
    with torch.cuda.device_of(hidden):
        _add_norm_pool[(rows, splits)](
            hidden,
            residual,
            NormWeights(weight, bias, eps),
            cu_seqlens,
            partial,
            tickets,
            pooled,
            hidden_size=size,
            span=POOL_TOKENS,
            mean=mean,
            **_norm_shape(size, POOL_TOKENS),
            **FUSED,
        )
    return pooled
