"""The rows of a phase whose budget is in tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

CHECKPOINT_TOKENS = 10_000  # between two checkpoints


class TokenSampler(Sampler[int]):
    """Rows, pass after pass, until they have the tokens of a budget.

    Each pass is in an order of its own; rows of similar length share a batch. What the trainer
    calls an epoch is a part of about `CHECKPOINT_TOKENS`, after which it saves a checkpoint. All
    parts have the same number of steps, and together at least the tokens of the budget.

    Args:
        lengths: of the rows, prompt included.
        tokens: of each row, what the budget counts: at least 1.
        budget: in tokens.
        batch_size: rows of a step, over all processes.
        seed: of the order.

    Attributes:
        epochs: the number of parts.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        tokens: Sequence[int],
        budget: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.epochs = max(1, round(budget / CHECKPOINT_TOKENS))
        rows: list[int] = []
        number, count = 0, 0  # rows of the budget, their tokens
        while count < budget:
            if number == len(rows):
                rows += self._pass(len(rows))
            count += tokens[rows[number]]
            number += 1
        self.steps = math.ceil(number / (batch_size * self.epochs))  # of a part
        needed = self.steps * self.epochs * batch_size
        while len(rows) < needed:
            rows += self._pass(len(rows))
        self.rows = rows[:needed]

    def _pass(self, done: int) -> list[int]:
        """The next pass, after `done` rows."""
        generator = torch.Generator().manual_seed(self.seed + done)
        grouped = LengthGroupedSampler(self.batch_size, lengths=self.lengths, generator=generator)
        return list(grouped)

    def set_epoch(self, epoch: int) -> None:
        """Choose the part of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self)
        return iter(self.rows[first : first + len(self)])
