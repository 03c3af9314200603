"""Embeddings, and the layer norm of a sum, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from consistentee_ext.ops import load_ops, reference
from consistentee_ext.weights import NormWeights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
native = pytest.mark.needs_native


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def norm_weights(size: int, dtype: torch.dtype) -> Any:
    return NormWeights(draw(size, dtype=dtype), draw(size, dtype=dtype), 1e-12)


def by_hand(total: Tensor, norm: Any) -> Tensor:
    mean = total.mean(-1, keepdim=True)
    variance = ((total - mean) ** 2).mean(-1, keepdim=True)
    return (total - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def check(found: Tensor, exact: Tensor, eager: Tensor) -> None:
    assert found.dtype == eager.dtype
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [2, 19, 384, 768])
def test_add_norm(size: int, dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    hidden, residual = draw(50, size, dtype=dtype), draw(50, size, dtype=dtype) + 3
    norm = norm_weights(size, dtype)
    exact = by_hand(hidden.double() + residual.double(), norm)
    eager = layer_norm(hidden + residual, (size,), norm.weight, norm.bias, norm.eps)
    check(load_ops(backend).add_norm(hidden.clone(), residual, *norm), exact, eager)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_bias_it_is_a_root_mean_square_norm(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(1)
    hidden, residual = draw(50, 48, dtype=dtype), draw(50, 48, dtype=dtype) + 3
    weight, eps = draw(48, dtype=dtype), 1e-6
    total = hidden.double() + residual.double()
    exact = total / (total.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    found = load_ops(backend).add_norm(hidden.clone(), residual, weight, None, eps)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)


def test_a_constant_row_is_the_bias(backend: str) -> None:
    norm: Any = NormWeights(torch.ones(8), torch.arange(8.0), 1e-5)
    found = load_ops(backend).add_norm(torch.full((1, 8), 7.0), torch.zeros(1, 8), *norm)
    torch.testing.assert_close(found, norm.bias[None])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embed(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    size = 48
    tables = (draw(30, size, dtype=dtype), draw(2, size, dtype=dtype), draw(9, size, dtype=dtype))
    tokens = [torch.randint(0, len(table), (70,)) for table in tables]
    norm = norm_weights(size, dtype)
    looked_up = [table.double()[ids] for table, ids in zip(tables, tokens, strict=True)]
    exact = by_hand(torch.stack(looked_up).sum(dim=0), norm)
    ids, types, positions = tokens
    eager = reference.embed(ids, types, positions, *tables, *norm)
    check(load_ops(backend).embed(ids, types, positions, *tables, *norm), exact, eager)


def test_no_tokens(backend: str) -> None:
    none, norm = torch.zeros(0, dtype=torch.int64), norm_weights(8, torch.float32)
    tables = (draw(3, 8), draw(3, 8), draw(3, 8))
    assert load_ops(backend).embed(none, none, none, *tables, *norm).shape == (0, 8)
    assert load_ops(backend).add_norm(draw(0, 8), draw(0, 8), *norm).shape == (0, 8)


def embed_arguments() -> dict[str, object]:
    return {
        **dict.fromkeys(("ids", "types", "positions"), torch.tensor([0])),
        **dict.fromkeys(("word_table", "type_table", "position_table"), torch.zeros(3, 8)),
        **dict.fromkeys(("weight", "bias"), torch.zeros(8)),
        "eps": 1e-5,
    }


@native
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ids", torch.tensor([3]), "ids: expected ids from 0 to 2"),
        ("types", torch.tensor([-1]), "types: expected ids from 0 to 2"),
        ("positions", torch.tensor([0, 0]), "positions: expected a contiguous tensor of shape"),
        ("type_table", torch.zeros(3, 7), "type_table: expected a contiguous tensor of shape"),
        ("weight", torch.zeros(7), "weight: expected a contiguous tensor of shape"),
    ],
)
def test_a_direct_embed_out_of_bounds_raises(name: str, value: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.embed(**(embed_arguments() | {name: value}))


@native
def test_a_direct_add_norm_out_of_bounds_raises() -> None:
    with pytest.raises(RuntimeError, match="residual: expected a contiguous tensor of shape"):
        torch.ops.consistentee.add_norm_(
            draw(3, 8), draw(2, 8), weight=draw(8), bias=draw(8), eps=1e-5
        )


@native
def test_opcheck() -> None:
    norm = {"weight": draw(8), "bias": draw(8), "eps": 1e-5}
    opcheck = torch.library.opcheck
    opcheck(torch.ops.consistentee.embed.default, (), embed_arguments())
    opcheck(torch.ops.consistentee.add_norm_.default, (draw(5, 8), draw(5, 8)), norm)
