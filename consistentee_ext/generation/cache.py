"""Keys and values of sequences that are being decoded, each in a slot that it never leaves.

Letters: N slots, U positions of a slot, L layers, K heads of keys, d head size, H hidden size,
E exit layers below the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlotCache:
    """Room for N sequences of up to U tokens. Memory is taken by the tokens that are written.

    A token that left behind a layer has a state there, and no keys and values at later layers
    until a token of its sequence runs these. Layers between two exits have those of the same
    tokens: they are a segment. Segment 0 ends with the first exit, segment E with the last layer.

    Attributes:
        keys: ``[L, N * U, K * d]``, as attention reads them: normed and rotated. Position p of slot
            s is row ``s * U + p``.
        values: ``[L, N * U, K * d]``.
        states: ``[N * U, H]``, of tokens that left.
        lengths: ``[N]`` int64, the tokens read of each sequence.
        filled: ``[E + 1, N]`` int64, how many of them have keys and values, by segment. It never
            rises from a segment to the next.
    """

    keys: Tensor
    values: Tensor
    states: Tensor
    lengths: Tensor
    filled: Tensor

    @property
    def num_slots(self) -> int:
        """N."""
        return len(self.lengths)

    @property
    def num_positions(self) -> int:
        """U."""
        return self.keys.shape[1] // self.num_slots

    def check_room(self, lengths: Tensor) -> None:
        """Raise ValueError where a sequence would have more than U tokens."""
        longest = int(lengths.max())
        if longest > self.num_positions:
            raise ValueError(
                f"tokens: expected at most {self.num_positions} of a sequence, got {longest}"
            )

    def pending(self, segment: int, slots: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens before position ``behind [R]`` that have no keys and values in a segment.

        Args:
            segment: from 0 to E.
            slots: ``[R]`` int64.
            behind: ``[R]`` int64.

        Returns:
            Their rows and their positions, ``[P]`` int64 each.
        """
        return spans(slots * self.num_positions, self.filled[segment, slots], behind)


def spans(bases: Tensor, first: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Row after row the numbers from ``first`` to ``behind - 1``, ``[R]`` int64 each: with the
    row's base added, and without.
    """
    lengths = behind - first
    total = int(lengths.sum())
    starts = first - lengths.cumsum(0) + lengths
    places = torch.arange(total, device=first.device)
    numbers = places + starts.repeat_interleave(lengths, output_size=total)
    return numbers + bases.repeat_interleave(lengths, output_size=total), numbers


def allocate_cache(
    num_slots: int,
    num_positions: int,
    num_layers: int,
    num_segments: int,
    key_size: int,
    like: Tensor,
) -> SlotCache:
    """An empty cache.

    Args:
        num_slots: N.
        num_positions: U.
        num_layers: L.
        num_segments: E + 1.
        key_size: ``K * d``.
        like: ``[..., H]``, whose dtype and device it has.

    Raises:
        RuntimeError: there is no memory for it; the message says how many bytes it takes.
    """
    rows, hidden_size = num_slots * num_positions, like.shape[-1]
    try:
        return SlotCache(
            keys=like.new_empty(num_layers, rows, key_size),
            values=like.new_empty(num_layers, rows, key_size),
            states=like.new_empty(rows, hidden_size),
            lengths=torch.zeros(num_slots, dtype=torch.int64, device=like.device),
            filled=torch.zeros(num_segments, num_slots, dtype=torch.int64, device=like.device),
        )
    except RuntimeError as error:  # a device's out of memory is one too
        size = like.element_size() * rows * (2 * num_layers * key_size + hidden_size)
        raise RuntimeError(
            f"cache: expected {size:,} bytes for {num_slots} sequences of {num_positions} tokens, "
            "got less memory; decode fewer at a time, or fewer new tokens"
        ) from error
