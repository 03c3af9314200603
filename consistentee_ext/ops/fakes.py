"""Shapes and dtypes of the compiled ops' results, for torch.compile and export."""

from __future__ import annotations

import torch
from torch import Tensor


def _survivors(hidden: Tensor, cu_seqlens: Tensor, row_ids: Tensor) -> tuple[Tensor, ...]:
    new_size = torch.library.get_ctx().new_dynamic_size
    return (
        hidden.new_empty(new_size(), hidden.shape[1]),
        cu_seqlens.new_empty(new_size()),
        row_ids.new_empty(new_size()),
    )


@torch.library.register_fake("consistentee::pack")
def _(input_ids: Tensor, *rest: object, **limits: object) -> tuple[Tensor, ...]:
    rows = input_ids.shape[0]
    tokens = torch.library.get_ctx().new_dynamic_size()
    packed = (input_ids.new_empty(tokens, dtype=torch.int64) for _ in range(3))
    cu_seqlens = input_ids.new_empty(rows + 1, dtype=torch.int32)
    return (*packed, cu_seqlens, input_ids.new_empty(rows, dtype=torch.int64))


@torch.library.register_fake("consistentee::embed")
def _(
    ids: Tensor, types: Tensor, positions: Tensor, *, word_table: Tensor, **rest: object
) -> Tensor:
    return word_table.new_empty(ids.shape[0], word_table.shape[1])


@torch.library.register_fake("consistentee::linear")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: str,
    scale: Tensor | None = None,
    levels: int = 0,
) -> Tensor:
    return x.new_empty(x.shape[0], len(weight if scale is None else scale))


@torch.library.register_fake("consistentee::attention")
def _(query: Tensor, key: Tensor, value: Tensor, **rest: object) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.register_fake("consistentee::add_norm_")
def _(hidden: Tensor, residual: Tensor, **rest: object) -> None:
    return None


@torch.library.register_fake("consistentee::mean_pool")
def _(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    return hidden.new_empty(cu_seqlens.shape[0] - 1, hidden.shape[1])


@torch.library.register_fake("consistentee::exit_step")
def _(
    hidden: Tensor, cu_seqlens: Tensor, row_ids: Tensor, pooled: Tensor, **rest: object
) -> tuple[Tensor, ...]:
    return _survivors(hidden, cu_seqlens, row_ids)
