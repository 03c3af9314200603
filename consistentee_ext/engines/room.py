"""The memory that graphs read and write, in sizes that many batches share."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Stack
from consistentee_ext.packed import ExitResults, PackedBatch


def token_size(tokens: int) -> int:
    """The tokens that a graph for this many has: 8 sizes an octave. Below 512 a layer takes the
    same time for any number.
    """
    if tokens <= 512:
        return max(32, 1 << (tokens - 1).bit_length())
    return _round_up(tokens, bits=4)


def row_size(rows: int) -> int:
    """The rows that a graph for this many has: 4 sizes an octave."""
    return _round_up(rows, bits=3)


def length_size(length: int) -> int:
    """A bound of the rows' lengths."""
    return max(64, 1 << (length - 1).bit_length())


def _round_up(number: int, bits: int) -> int:
    """To so many significant bits."""
    step = 1 << max(0, (number - 1).bit_length() - bits)
    return -(-number // step) * step


class Inputs(NamedTuple):
    """`PackedInputs` of a fixed size, in bytes one after the other: ``row_ids`` are -1 behind the
    last row. ``first_lengths`` are those of the rows' first texts, where exits compare two.

    What is of rows comes first: later exits read it, when the tokens have become fewer. The lengths
    have one entry more than there are rows, so that what follows is aligned.
    """

    row_ids: Any
    cu_seqlens: Any
    first_lengths: Any
    ids: Any
    types: Any
    positions: Any

    @staticmethod
    def bytes(tokens: int, rows: int) -> int:
        """Of all six."""
        return 8 * rows + 2 * 4 * (rows + 1) + 24 * tokens

    @classmethod
    def within(cls, flat: Any, tokens: int, rows: int, wide: Any, narrow: Any) -> Inputs:
        """The six as views of these bytes, a tensor's or an array's, by its own 8 and 4-byte
        integers.
        """
        sizes = [8 * rows, *[4 * (rows + 1)] * 2, *[8 * tokens] * 3]
        parts = [flat[i:j] for i, j in pairwise(accumulate(sizes, initial=0))]
        types = (wide, narrow, narrow, wide, wide, wide)
        return cls(*(part.view(type_) for part, type_ in zip(parts, types, strict=True)))


def fill(flat: Tensor, inputs: PackedInputs, firsts: Tensor | None, tokens: int, rows: int) -> None:
    """Write `inputs` and, where exits compare two texts, the first ones' lengths, as `Inputs` of
    `tokens` and `rows` into bytes of the host.
    """
    there, count = len(inputs.ids), len(inputs.row_ids)
    target = Inputs.within(flat.numpy(), tokens, rows, np.int64, np.int32)
    for name in ("ids", "types", "positions"):
        part = getattr(target, name)
        part[:there] = getattr(inputs, name).numpy()
        part[there:] = 0  # in every table
    target.row_ids[:count] = inputs.row_ids.numpy()
    target.row_ids[count:] = -1
    target.cu_seqlens[: count + 1] = inputs.cu_seqlens.numpy()
    target.cu_seqlens[count + 1 :] = there
    target.first_lengths[:] = 0
    if firsts is not None:
        target.first_lengths[:count] = firsts.numpy()


def results_within(flat: Tensor, room: int, rows: int) -> ExitResults:
    """`rows` results as views of ``flat``, float32, which holds `room`: so one copy takes all."""
    classes = len(flat) // room - 5
    integers = flat.view(torch.int32)
    return ExitResults(
        exit_layers=flat.view(torch.int64).as_strided((rows,), (1,), 0),
        logits=flat.as_strided((rows, classes), (classes, 1), 2 * room),
        exit_scores=flat.as_strided((rows,), (1,), (2 + classes) * room),
        labels=integers.as_strided((rows,), (1,), (3 + classes) * room),
        streaks=integers.as_strided((rows,), (1,), (4 + classes) * room),
    )


class Room:
    """The memory that graphs read and write: inputs, batches between exits, results."""

    def __init__(self, tokens: int, rows: int, stack: Stack, classes: int) -> None:
        words = stack.embedding.words
        device = words.device
        self.tokens = tokens
        self.rows = rows
        self.inputs = torch.zeros(Inputs.bytes(tokens, rows), dtype=torch.uint8, device=device)
        self.results = torch.zeros(rows * (classes + 5), device=device)
        self.tickets = torch.zeros(rows, dtype=torch.int32, device=device)
        # In turn what an exit reads and what it writes.
        self._batches = [
            PackedBatch(
                words.new_empty(tokens, stack.hidden_size),
                self.tickets.new_empty(rows + 1),
                words.new_empty(rows, dtype=torch.int64),
            )
            for _ in range(2)
        ]

    def batch(self, number: int, tokens: int, rows: int) -> PackedBatch:
        """What exit `number` (from 1) leaves."""
        hidden, cu_seqlens, row_ids = self._batches[number % 2]
        return PackedBatch(hidden[:tokens], cu_seqlens[: rows + 1], row_ids[:rows])
