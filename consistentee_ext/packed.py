"""What travels through the exit layers: the packed batch, a head's weights, the results.

Letters: B rows, T packed tokens, H hidden size, C classes, P policy size, N rows the caller gave.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PackedBatch(NamedTuple):
    """B rows unpadded: ``hidden [T, H]``, ``cu_seqlens [B+1]`` int32, ``row_ids [B]`` int64."""

    hidden: Tensor
    cu_seqlens: Tensor
    row_ids: Tensor

    def first_tokens(self) -> PackedBatch:
        """The same rows, cut to their first token."""
        rows = torch.arange(len(self.cu_seqlens), dtype=torch.int32, device=self.cu_seqlens.device)
        return PackedBatch(self.hidden[self.cu_seqlens[:-1]], rows, self.row_ids)


class HeadWeights(NamedTuple):
    """What the exit step reads of a head, in float32 whatever the dtype of the hidden state.

    Shapes: ``classifier_weight [C, H]``, ``classifier_bias [C]``, ``dense_weight [P, F]``,
        ``dense_bias [P]``,
    ``score_weight [P]``, ``score_bias [1]``; F is H, 5 or H + 5 by ``policy_input``. A head without
    policy has None in the last five.
    """

    classifier_weight: Tensor
    classifier_bias: Tensor
    dense_weight: Tensor | None = None
    dense_bias: Tensor | None = None
    score_weight: Tensor | None = None
    score_bias: Tensor | None = None
    policy_input: str | None = None


class LayerNormWeights(NamedTuple):
    """``weight [H]``, ``bias [H]`` in the dtype of the hidden states, and ``eps``."""

    weight: Tensor
    bias: Tensor
    eps: float


class ExitState(NamedTuple):
    """The results of the N rows the caller gave, in the caller's order; the exit steps write into
    it.

    ``logits [N, C]`` float32, ``exit_layers [N]`` int64 (0 before the row left), ``exit_scores
    [N]`` float32, and what one exit layer hands the next: ``labels [N]`` int32, the last predicted
    label (-1 at first), and ``streaks [N]`` int32, how many exit layers in a row agreed with the
    one before.
    """

    logits: Tensor
    exit_layers: Tensor
    exit_scores: Tensor
    labels: Tensor
    streaks: Tensor

    @classmethod
    def empty(cls, rows: int, classes: int, device: torch.device | str = "cpu") -> ExitState:
        return cls(
            logits=torch.zeros(rows, classes, dtype=torch.float32, device=device),
            exit_layers=torch.zeros(rows, dtype=torch.int64, device=device),
            exit_scores=torch.zeros(rows, dtype=torch.float32, device=device),
            labels=torch.full((rows,), -1, dtype=torch.int32, device=device),
            streaks=torch.zeros(rows, dtype=torch.int32, device=device),
        )


class ExitDecision(NamedTuple):
    """How a layer decides: see `consistentee_ext.criteria`.

    ``layer`` is 1-based; ``max_streak`` is the number of exit layers less one; at the ``last``
    layer every row leaves.
    """

    criterion: str
    threshold: float
    layer: int
    max_streak: int
    last: bool
