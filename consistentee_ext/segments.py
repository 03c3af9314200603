"""The two texts of a row that is a pair: where the first one ends, and how both are compared.

A row of one text counts as its own pair. Letters: B rows, T packed tokens, H hidden size, N rows
the caller gave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from consistentee_ext.inputs import PackedInputs

COMPARED = 4  # vectors that `compare` makes of two


def first_lengths(inputs: PackedInputs, separator_id: int) -> Tensor:
    """How many tokens the first text of each row has, with the separator behind it: ``[N]`` int32
    by the numbers of the rows. All of them, where a row has one text.
    """
    lengths = inputs.cu_seqlens.diff().long()
    rows = torch.repeat_interleave(lengths, output_size=len(inputs.ids))
    behind = torch.arange(1, len(inputs.ids) + 1) - inputs.cu_seqlens[:-1].long()[rows]
    behind = torch.where(inputs.ids == separator_id, behind, lengths[rows])
    first = lengths.scatter_reduce(0, rows, behind, "amin")
    out = torch.zeros(int(inputs.row_ids.max()) + 1 if len(rows) else 0, dtype=torch.int32)
    out[inputs.row_ids] = first.int()
    return out


def segment_offsets(cu_seqlens: Tensor, firsts: Tensor) -> Tensor:
    """``[2B+1]`` int32: where each row's first and second text begin, from the rows' offsets
    ``[B+1]`` and the lengths of their first texts ``[B]``.
    """
    begin, end = cu_seqlens[:-1], cu_seqlens[1:]
    middle = torch.minimum(begin + firsts, end)
    return torch.cat([torch.stack([begin, middle], dim=1).flatten(), cu_seqlens[-1:]])


def pair_up(means: Tensor, offsets: Tensor) -> Tensor:
    """``[B, 2H]`` of the means ``[2B, H]`` of texts at `offsets`: one text alone is there twice."""
    first, second = means.unflatten(0, (-1, 2)).unbind(dim=1)
    alone = offsets[1::2] == offsets[2::2]
    return torch.cat([first, torch.where(alone[:, None], first, second)], dim=-1)


def compare(first: Tensor, second: Tensor) -> Tensor:
    """``(u, v, |u - v|, u * v)``, ``[B, 4H]`` of two ``[B, H]``: as sentences are compared by their
    embeddings (arXiv 1705.02364).
    """
    return torch.cat([first, second, (first - second).abs(), first * second], dim=-1)
