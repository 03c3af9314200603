"""Attention on packed rows against float64, row by row and head by head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from consistentee_ext.ops import load_ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
native = pytest.mark.needs_native


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def by_hand(
    query: Tensor, key: Tensor, value: Tensor, queries: list[int], keys: list[int], heads: int
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with the whole matrix in memory, in the dtype of its arguments."""
    rows = []
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        columns = zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True)
        rows.append(
            torch.cat([(a @ b.T / a.shape[1] ** 0.5).softmax(-1) @ c for a, b, c in columns], -1)
        )
    return torch.cat(rows)


def check(
    queries: list[int], keys: list[int], heads: int, size: int, dtype: torch.dtype, backend: str
) -> None:
    torch.manual_seed(0)
    width = heads * size
    # A wider product whose columns they are slices of, as in the layers.
    query = torch.randn(sum(queries), 2 * width).to(dtype)[:, :width]
    key, value = torch.randn(sum(keys), 2 * width).to(dtype).chunk(2, dim=-1)
    rows = (offsets(queries), offsets(keys))
    found = load_ops(backend).attention(query, key, value, *rows, heads)
    exact = by_hand(query.double(), key.double(), value.double(), queries, keys, heads)
    eager = by_hand(query, key, value, queries, keys, heads)
    assert found.dtype == dtype
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [32, 64, 80, 96, 128])
@pytest.mark.parametrize(
    "lengths", [[1], [3, 3, 3], [5, 1, 19, 64, 65, 1, 1], [512, 7], [700]], ids=str
)
def test_each_row_attends_to_itself_alone(
    lengths: list[int], size: int, dtype: torch.dtype, backend: str
) -> None:
    check(lengths, lengths, 2, size, dtype, backend)


@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    size=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=60, deadline=None)
@native
def test_any_lengths_and_sizes(
    lengths: list[int], heads: int, size: int, dtype: torch.dtype
) -> None:
    check(lengths, lengths, heads, size, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_query_a_row(dtype: torch.dtype, backend: str) -> None:
    check([1, 1, 1], [4, 130, 1], 3, 32, dtype, backend)


def test_rows_without_tokens_are_skipped(backend: str) -> None:
    tokens = torch.randn(5, 8)
    rows = offsets([0, 2, 0, 3, 0])
    found = load_ops(backend).attention(tokens, tokens, tokens, rows, rows, 2)
    alone = offsets([2, 3])
    expected = load_ops(backend).attention(tokens, tokens, tokens, alone, alone, 2)
    assert torch.equal(found, expected)


def test_no_rows(backend: str) -> None:
    empty, none = torch.zeros(0, 48), offsets([])
    assert load_ops(backend).attention(empty, empty, empty, none, none, 2).shape == (0, 48)


@native
def test_large_scores_do_not_overflow() -> None:
    """Between tiles the largest score moves from the first keys to the last ones."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(200, 16) for _ in range(3))
    key = key * torch.linspace(1, 100, 200)[:, None]
    rows = offsets([200])
    found = load_ops("cpu").attention(query, key, value, rows, rows, 1)
    exact = by_hand(query.double(), key.double(), value.double(), [200], [200], 1)
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-4)


@native
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    tokens = torch.randn(90, 64)
    together = offsets([7, 70, 13])
    found = load_ops("cpu").attention(tokens, tokens, tokens, together, together, 2)[7:77]
    alone = tokens[7:77]
    row = offsets([70])
    assert torch.equal(found, load_ops("cpu").attention(alone, alone, alone, row, row, 2))


@native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_offsets": offsets([2, 2])}, "query_offsets: expected offsets"),
        ({"key_offsets": offsets([6, -1])}, "key_offsets: expected offsets"),
        ({"key_offsets": offsets([5])}, "key_offsets: expected a contiguous tensor of shape"),
        ({"num_heads": 3}, "num_heads: expected a divisor of H"),
        ({"key": torch.zeros(4, 8)}, "key, value: expected the same number of tokens"),
        ({"value": torch.zeros(5, 8).bfloat16()}, "value: expected shape"),
        ({"query": torch.zeros(8, 5).T}, "query: expected shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_direct_call_out_of_bounds_raises(changes: dict, message: str) -> None:
    arguments = {
        **{name: torch.zeros(5, 8) for name in ("query", "key", "value")},
        "query_offsets": offsets([2, 3]),
        "key_offsets": offsets([2, 3]),
        "num_heads": 2,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.attention(**(arguments | changes))


@native
def test_opcheck() -> None:
    tokens, rows = torch.randn(5, 8), offsets([2, 3])
    torch.library.opcheck(
        torch.ops.consistentee.attention.default,
        (tokens, tokens, tokens),
        {"query_offsets": rows, "key_offsets": rows, "num_heads": 2},
    )
