"""Layer norm of a sum; where an exit follows, the rows' pooling as well."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from consistentee_ext.ops.triton.common import FUSED, TILE, ends_last
from consistentee_ext.segments import COMPARED
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
def _text_mean(
    sums: tl.tensor,
    blocks: tl.tensor,
    tokens: tl.tensor,
    inside: tl.tensor,
    hidden_size: tl.constexpr,
    block: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:
    """The rounded mean of a text's tokens, [block], from the sums of its blocks."""
    total = tl.zeros([block], tl.float32)
    for other in range(blocks):
        total += tl.load(sums + other * hidden_size, mask=inside, other=0.0, volatile=True)
    return tl.div_rn(total, tokens.to(tl.float32)).to(dtype)


@triton.jit
def _add_norm_pool(
    hidden: tl.tensor,
    residual: tl.tensor,
    norm: tl.tuple,
    cu_seqlens: tl.tensor,
    row_ids: tl.tensor,
    first_lengths: tl.tensor,
    partial: tl.tensor,
    tickets: tl.tensor,
    pooled: tl.tensor,
    hidden_size: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    span: tl.constexpr,
    width: tl.constexpr,
    mean: tl.constexpr,
    pair: tl.constexpr,
) -> None:
    """Grid (B, splits): `span` tokens of a text a program, `tile` at a time.

    The program of a row that ends last adds up `partial` [B, splits, H] in the order of the tokens.
    The programs of a second text come behind those of the first: pairs need one split more.
    """
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row_begin, row_end = tl.load(cu_seqlens + row), tl.load(cu_seqlens + row + 1)
    middle = row_end  # where a second text begins
    if pair:
        numbered = row_begin < row_end  # an absent row has no number
        number = tl.load(row_ids + row, mask=numbered, other=0)
        length = tl.load(first_lengths + number, mask=numbered, other=0)
        middle = row_begin + tl.minimum(tl.maximum(length, 0), row_end - row_begin)
    first_blocks = tl.cdiv(middle - row_begin, span)
    in_first = split < first_blocks
    begin = tl.where(in_first, row_begin + split * span, middle + (split - first_blocks) * span)
    text_end = tl.where(in_first, middle, row_end)
    if begin < text_end:
        end = tl.minimum(begin + span, text_end)
        columns = tl.arange(0, block)
        inside = columns < hidden_size
        out = pooled + row * width + columns
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
            second_blocks = tl.cdiv(row_end - middle, span)
            if ends_last(tickets + row, first_blocks + second_blocks):
                dtype: tl.constexpr = pooled.dtype.element_ty
                count = middle - row_begin
                u = _text_mean(sums, first_blocks, count, inside, hidden_size, block, dtype)
                tl.store(out, u, mask=inside)
                if pair:
                    v = u  # of one text alone
                    if second_blocks > 0:
                        sums += first_blocks * hidden_size
                        count = row_end - middle
                        v = _text_mean(
                            sums, second_blocks, count, inside, hidden_size, block, dtype
                        )
                    tl.store(out + hidden_size, v, mask=inside)
                    u, v = u.to(tl.float32), v.to(tl.float32)
                    tl.store(out + 2 * hidden_size, tl.abs(u - v).to(dtype), mask=inside)
                    tl.store(out + 3 * hidden_size, (u * v).to(dtype), mask=inside)
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
    row_ids: Tensor | None = None,
    first_lengths: Tensor | None = None,
) -> Tensor:
    """`add_norm`, and one vector a row: the mean of its normalised tokens, the first of them, or
    ``(u, v, |u - v|, u * v)`` of the means of its two texts.

    Args:
        cu_seqlens: ``[B+1]`` int32; a row may be empty, its vector is then unspecified.
        max_length: no row has more tokens.
        pooling: mean, of the rounded values, in float32, rounded once; cls, the first token; or
            pair, of two such means.
        tickets: ``[B]`` int32 or more, zeros before and after.
        row_ids: ``[B]`` int64, for pairs; not read of an empty row.
        first_lengths: ``[N]`` int32, for pairs: the tokens of the first text of each row, by its
            number. One text alone is there twice.

    Returns:
        ``[B, H]``, of pairs ``[B, 4H]``, in the dtype of `hidden`.
    """
    rows, size = len(cu_seqlens) - 1, hidden.shape[1]
    mean, pair = pooling in ("mean", "pair"), pooling == "pair"
    pooled = hidden.new_empty(rows, COMPARED * size if pair else size)
    if pooled.numel() == 0 or hidden.numel() == 0:
        return pooled
    splits = triton.cdiv(max_length, POOL_TOKENS) + (1 if pair else 0)
    partial = hidden.new_empty(rows if mean else 0, splits, size, dtype=torch.float32)
    with torch.cuda.device_of(hidden):
        _add_norm_pool[(rows, splits)](
            hidden,
            residual,
            NormWeights(weight, bias, eps),
            cu_seqlens,
            row_ids,
            first_lengths,
            partial,
            tickets,
            pooled,
            hidden_size=size,
            span=POOL_TOKENS,
            width=pooled.shape[1],
            mean=mean,
            pair=pair,
            **_norm_shape(size, POOL_TOKENS),
            **FUSED,
        )
    return pooled
