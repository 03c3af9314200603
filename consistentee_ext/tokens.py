"""Texts to packed tokens: rows of like length together, a bounded number of tokens a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from consistentee_ext.inputs import PackedInputs


class TokenRows(NamedTuple):
    """Tokens of N rows of any length, as lists: ids and segment ids."""

    ids: list[list[int]]
    types: list[list[int]]


WINDOW = 8192  # rows whose tokens are in memory at a time


def token_windows(
    texts: object, tokenizer: Any, max_length: int, first_row: int = 0
) -> Iterator[tuple[int, TokenRows]]:
    """Tokens of N texts or pairs of texts from `first_row` on, cut at `max_length`: `WINDOW` rows
    at a time, each time with the number of the first.

    Raises:
        TypeError: `texts` is no sequence of strings, nor of pairs of strings.
    """
    paired = _are_pairs(texts)
    assert isinstance(texts, Sequence)
    return _windows(texts, paired, tokenizer, max_length, first_row)


def _are_pairs(texts: object) -> bool:
    """Whether all are pairs of strings; raises TypeError unless all are, or all are strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"texts: expected a sequence of strings or of pairs, got {type(texts).__name__}"
        )
    paired = len(texts) > 0 and isinstance(texts[0], (tuple, list))
    for row, text in enumerate(texts):
        parts = text if paired else (text,)
        ok = isinstance(parts, (tuple, list)) and len(parts) == (2 if paired else 1)
        if not ok or not all(isinstance(part, str) for part in parts):
            wanted = "a pair of strings" if paired else "a string"
            raise TypeError(f"texts: expected {wanted} in row {row}, got {type(text).__name__}")
    return paired


def _windows(
    texts: Sequence[Any], paired: bool, tokenizer: Any, max_length: int, first_row: int
) -> Iterator[tuple[int, TokenRows]]:
    for first in range(first_row, len(texts), WINDOW):
        window = texts[first : first + WINDOW]
        columns = [list(part) for part in zip(*window, strict=True)] if paired else [list(window)]
        try:
            encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
        except TypeError as error:  # what tokenizers raise of half a character
            _check_characters(window, paired, first)
            raise error
        ids = encoded["input_ids"]
        types = encoded.get("token_type_ids") or [[0] * len(row) for row in ids]
        yield first, TokenRows(ids, types)


def _check_characters(texts: Sequence[Any], paired: bool, first: int) -> None:
    """Raise ValueError where a string has half of a character, which no encoding has."""
    for row, text in enumerate(texts, start=first):
        try:
            ("".join(text) if paired else text).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(
                f"texts: expected text, got half a character, {half!r}, in row {row}"
            ) from None


def without_trailing(rows: TokenRows, trailing_id: int) -> TokenRows:
    """The rows without the tokens of this id at their end; the first one of each stays."""
    ends = []
    for ids in rows.ids:
        end = len(ids)
        while end > 1 and ids[end - 1] == trailing_id:
            end -= 1
        ends.append(end)
    parts = ([row[:end] for row, end in zip(part, ends, strict=True)] for part in rows)
    return TokenRows(*parts)


def check_ids(rows: TokenRows, first: int, vocab_size: int) -> None:
    """Raise ValueError where a tokenizer gives an id that the model has no embedding of."""
    for row, ids in enumerate(rows.ids, start=first):
        if max(ids, default=0) >= vocab_size:
            raise ValueError(
                f"tokenizer: expected ids below {vocab_size}, the model's embeddings, got "
                f"{max(ids)} in row {row}"
            )


def pack_rows(rows: TokenRows, chosen: Sequence[int], padding_id: int | None) -> PackedInputs:
    """The chosen rows side by side, in the order of `chosen`: the longest first.

    `padding_id` says how positions are counted, see `consistentee_ext.packed.InputLimits`.
    """
    lengths = [len(rows.ids[row]) for row in chosen]
    offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def join(lists: Iterable[Iterable[int]]) -> Tensor:
        return torch.tensor(list(chain.from_iterable(lists)))

    return PackedInputs(
        join(rows.ids[row] for row in chosen),
        join(rows.types[row] for row in chosen),
        join(_positions(rows.ids[row], padding_id) for row in chosen),
        offsets,
        torch.tensor(chosen),
    )


def _positions(ids: list[int], padding_id: int | None) -> Iterable[int]:
    if padding_id is None:
        return range(len(ids))
    counts = accumulate(id_ != padding_id for id_ in ids)
    pairs = zip(ids, counts, strict=True)
    return [padding_id + (count if id_ != padding_id else 0) for id_, count in pairs]


def check_budget(batch_tokens: object) -> None:
    """Raise TypeError or ValueError unless it is a number of tokens."""
    if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int):
        raise TypeError(f"batch_tokens: expected an integer, got {type(batch_tokens).__name__}")
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: expected at least 1, got {batch_tokens}")


def token_budget_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row numbers of each batch, longest rows first; every batch holds at most `batch_tokens`.

    A row longer than the budget is a batch of its own. Rows of one length stay neighbours, so that
    attention runs them in one call; the longest come first, so that memory peaks at the start.
    """
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
