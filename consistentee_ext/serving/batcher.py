"""Batches from a queue, by tokens and without a wait: what is there when the engine is free goes.

No framework: requests come from any thread, answers leave by a function. The clock is an argument.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from consistentee_ext.serving.levels import BrownOut, Level
from consistentee_ext.serving.request import Answer, DrainingError, OverloadedError, Request, Row

NEWEST = 0.5  # weight of the newest measurement in a running mean


class Steps(Protocol):
    """A pass over rows, by number from 0."""

    def rows(self) -> list[int]:
        """Those that have not left."""

    def work(self, steps: int) -> int:
        """Tokens times layers of the next steps, if no row leaves."""

    def release(self, rows: list[int]) -> None:
        """These leave at the end of the next step."""

    def step(self, whole: bool) -> list[tuple[int, Answer]]:
        """Run to the next exit layer, or to the last; the rows that left there."""


class Model(Protocol):
    """What a batcher runs."""

    def start(
        self,
        rows: Sequence[Row],
        thresholds: Sequence[float],
        max_layers: Sequence[int | None],
    ) -> Steps:
        """A pass over these rows."""


class Observer(Protocol):
    """What is told of a batcher's work, by its thread."""

    def batch(self, rows: int, tokens: int) -> None:
        """A batch begins."""

    def answers(self, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
        """These rows left."""

    def state(self, queued_rows: int, queued_tokens: int, level: int) -> None:
        """The queue, and the level's number, now."""

    def dropped(self, reason: str, rows: int) -> None:
        """Rows in the queue that were not run: ``deadline`` or ``hung_up``."""


class _Place(NamedTuple):
    request: Request
    number: int

    @property
    def row(self) -> Row:
        return self.request.rows[self.number]


class Batcher:
    """A bounded queue of requests, and the thread that runs them.

    A row leaves with its answer at its exit layer; a request is delivered with its last row.

    Args:
        model: runs the rows; by this batcher's thread alone.
        deliver: is given the requests that are complete or failed, some at a time, by the
            batcher's thread.
        observer: is told what happens.
        levels: the level in force first, then faster ones, to which the batcher goes while its
            queue is long or deadlines pass in it; of requests without a threshold of their own.
        max_batch_tokens: tokens of a batch; a longer row is a batch of its own.
        max_queue_tokens: tokens that wait at most.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: Model,
        deliver: Callable[[list[Request]], None],
        observer: Observer,
        *,
        levels: Sequence[Level],
        max_batch_tokens: int,
        max_queue_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._deliver = deliver
        self._observer = observer
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._clock = clock
        self._brown_out = BrownOut(levels, clock)
        self._queue: deque[_Place] = deque()
        self._queued_rows = 0
        self._queued_tokens = 0
        self._draining = False
        self._changed = threading.Condition()
        self._work_seconds = 0.0  # of a token in a layer
        self._token_seconds = 0.0  # of a token in all the layers it runs
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)

    @property
    def queued_tokens(self) -> int:
        """Of the rows that wait."""
        return self._queued_tokens

    @property
    def level(self) -> Level:
        """The one in force."""
        return self._brown_out.level

    @property
    def is_healthy(self) -> bool:
        """Whether it takes requests and its thread runs."""
        return self._thread.is_alive() and not self._draining

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def drain(self) -> None:
        """Take nothing more, and wait until all that is queued is answered."""
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._thread.join()

    def submit(self, request: Request) -> None:
        """Queue a request; its deadline is on the batcher's clock.

        Raises:
            ValueError: it has more tokens than the queue ever has room for.
            OverloadedError: there is no room now.
            DrainingError: nothing is taken any more.
        """
        tokens = request.tokens
        if tokens > self._max_queue_tokens:
            raise ValueError(
                f"request of {tokens} tokens > maximum queue of {self._max_queue_tokens} tokens"
            )
        with self._changed:
            if self._draining:
                raise DrainingError
            filled = self._queued_tokens + tokens
            self._brown_out.observe(filled / self._max_queue_tokens)
            if filled > self._max_queue_tokens:
                raise OverloadedError(self._retry_after())
            request.submitted = self._clock()
            request.waiting_rows, request.waiting_tokens = len(request.rows), tokens
            self._queued_rows += len(request.rows)
            self._queued_tokens = filled
            self._queue.extend(_Place(request, number) for number in range(len(request.rows)))
            self._tell_state()
            self._changed.notify()

    def hang_up(self, request: Request) -> None:
        """Nobody waits for it: its rows enter no batch, those in one leave at the next exit."""
        with self._changed:
            if not request.over and not request.complete:
                self._observer.dropped("hung_up", self._forget(request))

    def run_batch(self) -> bool:
        """Run one batch to its end; False where nothing waits."""
        batch = self._next_batch()
        if not batch:
            return False
        begun = self._clock()
        try:
            self._run(batch)
        except Exception as error:  # of the model: the next batch may do
            failed = {place.request: None for place in batch if not place.request.complete}
            with self._changed:
                alive = [request for request in failed if not request.over]
                for request in alive:
                    self._forget(request)
                    request.error = error
            self._deliver(alive)
        tokens = sum(len(place.row.ids) for place in batch)
        self._token_seconds = _mean(self._token_seconds, (self._clock() - begun) / tokens)
        return True

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._draining)
                if not self._queue:
                    return
            self.run_batch()

    def _retry_after(self) -> int:
        """Whole seconds until what is queued has run."""
        return max(1, math.ceil(self._queued_tokens * self._token_seconds))

    def _tell_state(self) -> None:
        self._observer.state(self._queued_rows, self._queued_tokens, self._brown_out.index)

    def _forget(self, request: Request) -> int:
        """Take its rows out of the count; how many were waiting. With the lock."""
        request.over = True
        waited = request.waiting_rows
        self._queued_rows -= waited
        self._queued_tokens -= request.waiting_tokens
        request.waiting_rows = request.waiting_tokens = 0
        self._tell_state()
        return waited

    def _next_batch(self) -> list[_Place]:
        """The rows that came first, as many as the budget holds."""
        batch: list[_Place] = []
        expired: list[Request] = []
        room = self._max_batch_tokens
        with self._changed:
            now = self._clock()
            while self._queue:
                request, number = self._queue[0]
                length = len(request.rows[number].ids)
                if not request.over and request.deadline is not None and now >= request.deadline:
                    self._observer.dropped("deadline", self._forget(request))
                    request.error = OverloadedError(
                        self._retry_after(), "the deadline passed before a batch was free"
                    )
                    expired.append(request)
                if request.over:
                    self._queue.popleft()
                    continue
                if batch and length > room:
                    break
                batch.append(self._queue.popleft())
                room -= length
                self._queued_rows -= 1
                self._queued_tokens -= length
                request.waiting_rows -= 1
                request.waiting_tokens -= length
                if request.started is None:
                    request.started = now
            # Where deadlines pass in it, the queue is too long whatever room it has.
            self._brown_out.observe(
                1.0 if expired else self._queued_tokens / self._max_queue_tokens
            )
            self._tell_state()
        if expired:
            self._deliver(expired)
        return batch

    def _run(self, batch: list[_Place]) -> None:
        level = self._brown_out.level
        requests = [place.request for place in batch]
        steps = self._model.start(
            [place.row for place in batch],
            [level.threshold if r.threshold is None else r.threshold for r in requests],
            [request.max_layers for request in requests],
        )
        self._observer.batch(len(batch), sum(len(place.row.ids) for place in batch))
        # Where all rows are answered together and have time, steps between exits serve nobody.
        whole = len(set(requests)) == 1 and requests[0].deadline is None
        released: set[int] = set()
        while left := steps.rows():
            if not whole:
                late = [row for row in left if row not in released]
                late = self._late(batch, late, steps)
                if late:
                    steps.release(late)
                    released.update(late)
            begun, work = self._clock(), steps.work(1)
            gone = steps.step(whole)
            if not whole:
                self._work_seconds = _mean(self._work_seconds, (self._clock() - begun) / work)
            self._take(batch, gone, level)

    def _late(self, batch: list[_Place], rows: list[int], steps: Steps) -> list[int]:
        """Rows nobody waits for, and those whose deadline the step after the next would miss."""
        after_next = self._clock() + steps.work(2) * self._work_seconds
        late = []
        for row in rows:
            request = batch[row].request
            if request.over or (request.deadline is not None and after_next > request.deadline):
                late.append(row)
        return late

    def _take(self, batch: list[_Place], gone: list[tuple[int, Answer]], level: Level) -> None:
        done: dict[Request, None] = {}
        now = self._clock()
        for row, answer in gone:
            request, number = batch[row]
            name = level.name if request.threshold is None else request.level
            request.answers[number] = answer._replace(level=name)
            if request.complete and not request.over:
                request.finished = now
                done[request] = None
        if gone:
            self._observer.answers([batch[row].row for row, _ in gone], [a for _, a in gone])
        if done:
            self._deliver(list(done))


def _mean(mean: float, newest: float) -> float:
    return newest if mean == 0.0 else (1 - NEWEST) * mean + NEWEST * newest
