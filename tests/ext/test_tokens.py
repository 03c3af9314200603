"""Batches of so many tokens at most."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistentee_ext.tokens import token_budget_batches


def test_by_hand() -> None:
    # Longest first, ties in the order given: 9 | 5 4 | 4 3 2 with a budget of 9.
    assert token_budget_batches([4, 9, 5, 4, 2, 3], 9) == [[1], [2, 0], [3, 5, 4]]
    assert token_budget_batches([20, 1], 9) == [[0], [1]]
    assert token_budget_batches([], 9) == []


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 80))
def test_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_budget(value: Any, error: type) -> None:
    with pytest.raises(error, match="batch_tokens: expected"):
        token_budget_batches([1], value)
