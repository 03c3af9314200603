"""What travels through layers and exits: the packed batch, the results, how a layer decides.

Letters: B rows, T packed tokens, H hidden size, C classes, N rows the caller gave, E exit layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PackedBatch(NamedTuple):
    """B rows without padding.

    Attributes:
        hidden: ``[T, H]``, the tokens' hidden states, row after row.
        cu_seqlens: ``[B+1]`` int32, the offset of each row's first token; the last element is T.
        row_ids: ``[B]`` int64, the place of each row in the results.
    """

    hidden: Tensor
    cu_seqlens: Tensor
    row_ids: Tensor

    def first_tokens(self) -> PackedBatch:
        """The same rows, cut to their first token."""
        rows = torch.arange(len(self.cu_seqlens), dtype=torch.int32, device=self.cu_seqlens.device)
        return PackedBatch(self.hidden[self.cu_seqlens[:-1]], rows, self.row_ids)

    def last_tokens(self) -> PackedBatch:
        """The same rows, cut to their last token."""
        rows = torch.arange(len(self.cu_seqlens), dtype=torch.int32, device=self.cu_seqlens.device)
        return PackedBatch(self.hidden[self.cu_seqlens[1:] - 1], rows, self.row_ids)


class ExitResults(NamedTuple):
    """Results of the N rows the caller gave, in the caller's order; the exit steps write into it.

    Attributes:
        logits: ``[N, C]`` float32, of the layer the row left at. Where labels are independent, of
            the last exit layer it has seen: the set that the next one is compared with.
        exit_layers: ``[N]`` int64, 0 before the row left.
        exit_scores: ``[N]`` float32.
        labels: ``[N]`` int32, the label the last exit layer predicted, -1 at first. Where labels
            are independent, 0 from the first exit layer on.
        streaks: ``[N]`` int32, how many exit layers in a row agreed with the one before.
    """

    logits: Tensor
    exit_layers: Tensor
    exit_scores: Tensor
    labels: Tensor
    streaks: Tensor

    @classmethod
    def empty(cls, rows: int, classes: int, device: torch.device | str = "cpu") -> ExitResults:
        """Results of `rows` rows of which none has left."""
        return cls(
            logits=torch.zeros(rows, classes, dtype=torch.float32, device=device),
            exit_layers=torch.zeros(rows, dtype=torch.int64, device=device),
            exit_scores=torch.zeros(rows, dtype=torch.float32, device=device),
            labels=torch.full((rows,), -1, dtype=torch.int32, device=device),
            streaks=torch.zeros(rows, dtype=torch.int32, device=device),
        )


class ExitDecision(NamedTuple):
    """How one layer decides which rows leave.

    Attributes:
        criterion: one of `consistentee_ext.criteria.CRITERIA`.
        thresholds: ``[N]`` float32; a row leaves where its score is above its own. One value that
            stands for all rows is expanded.
        layer: 1-based.
        max_streak: the number of exit layers less one.
        last: whether every row leaves.
    """

    criterion: str
    thresholds: Tensor
    layer: int
    max_streak: int
    last: bool


class InputLimits(NamedTuple):
    """Which inputs a model takes.

    Attributes:
        vocab_size: ids are below it.
        type_vocab_size: segment ids are below it.
        num_positions: entries of the position table.
        padding_id: None where a token's position is its column; else positions count the ids that
            differ from it, from ``padding_id + 1`` on.
        by_place: whether attention goes by a token's place in its row: a row may then have no
            masked tokens inside, and takes no positions from the caller.
        trailing_id: tokens of this id at the end of a row are dropped, all but the row's first: a
            causal classifier reads the last token that is none. None for no such id.
    """

    vocab_size: int
    type_vocab_size: int
    num_positions: int
    padding_id: int | None = None
    by_place: bool = False
    trailing_id: int | None = None

    @property
    def max_length(self) -> int:
        """The longest row, in tokens."""
        return self.num_positions - (0 if self.padding_id is None else self.padding_id + 1)
