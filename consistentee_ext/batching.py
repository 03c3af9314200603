"""Batches by token budget: rows of like length together, a bounded number of tokens."""

from __future__ import annotations

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers of each batch, longest rows first; every batch holds at most `batch_tokens`.

    A row longer than the budget is a batch of its own. Rows of one length stay neighbours, so that
    attention runs them in one call; the longest come first, so that memory peaks at once.
    """
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int):
        raise TypeError(f"batch_tokens: expected an integer, got {type(batch_tokens).__name__}")
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if not batches or lengths[row] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(row)
        room -= lengths[row]
    return batches
