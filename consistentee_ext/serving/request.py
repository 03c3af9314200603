"""What a client asks: some rows, how fast, and until when; its answers as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Row(NamedTuple):
    """Tokens of a row: ids and segment ids."""

    ids: list[int]
    types: list[int]


class Answer(NamedTuple):
    """What a row left with.

    Attributes:
        logits: C numbers.
        exit_layer: from 1.
        at_deadline: whether it left because of its deadline, below its threshold.
        level: the name of the level it was run at; None for a threshold of the request's own.
    """

    logits: list[float]
    exit_layer: int
    at_deadline: bool
    level: str | None = None


class OverloadedError(Exception):
    """The queue has no room; `retry_after` says in how many seconds it should."""

    def __init__(self, retry_after: int, reason: str = "Model is overloaded") -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DrainingError(Exception):
    """The server takes nothing any more."""


@dataclass(eq=False)
class Request:
    """Rows that are answered together.

    Attributes:
        rows: N of them.
        threshold: of these rows; None for that of the level in force.
        level: the name of the level that `threshold` is of.
        max_layers: they leave there at the latest; None for the last layer.
        deadline: on the batcher's clock, in seconds; None for none.
        submitted: when it came, likewise.
        started: when its first row entered a batch.
        finished: when its last row left.
        answers: of the rows, None before they come.
        error: what came in their place.
        over: nobody waits for it any more.
        waiting_rows: in the queue.
        waiting_tokens: of these.
    """

    rows: Sequence[Row]
    threshold: float | None = None
    level: str | None = None
    max_layers: int | None = None
    deadline: float | None = None
    submitted: float = 0.0
    started: float | None = None
    finished: float = 0.0
    answers: list[Answer | None] = field(init=False)
    error: Exception | None = None
    over: bool = False
    waiting_rows: int = 0
    waiting_tokens: int = 0

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.rows)

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether all answers are there."""
        return all(answer is not None for answer in self.answers)
