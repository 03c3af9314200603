"""From what a client asks to answers: tokenize, queue, wait, unless the client hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch

from consistentee_ext.configuration import level_threshold
from consistentee_ext.serving.batcher import Batcher
from consistentee_ext.serving.bodies import Ask, Speed
from consistentee_ext.serving.errors import ApiError, validation
from consistentee_ext.serving.levels import Level
from consistentee_ext.serving.metrics import Metrics
from consistentee_ext.serving.model import EmptyRowError, EncoderModel, TooLongError
from consistentee_ext.serving.request import (
    Answer,
    DrainingError,
    OverloadedError,
    Request,
)
from consistentee_ext.serving.scoring import scores

MAX_CONCURRENT_REQUESTS = 512


class HungUpError(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True)
class Limits:
    """What a server takes; raises ValueError where a number is below 1.

    Attributes:
        batch_tokens: of a batch.
        queue_tokens: that wait.
        client_batch_size: texts of a request.
    """

    batch_tokens: int = 2048
    queue_tokens: int = 32768
    client_batch_size: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            if (number := getattr(self, field.name)) < 1:
                raise ValueError(f"max_{field.name}: expected at least 1, got {number}")


@dataclass(frozen=True)
class Reply:
    """The answers of what was asked, and what they took.

    Attributes:
        scores: ``[N, C]``.
        answers: of the rows.
        characters: of the texts.
        tokens: of the rows.
        seconds: of ``tokenization``, ``queue``, ``inference``.
    """

    scores: list[list[float]]
    answers: list[Answer]
    characters: int
    tokens: int
    seconds: dict[str, float]


class Service:
    """A model behind a batcher, for the coroutines of one event loop.

    Args:
        model: tokenized in a thread of its own, run in the batcher's.
        levels: the one in force first, see `Batcher`.
        limits: of requests.
        metrics: are told.
    """

    def __init__(
        self, model: EncoderModel, levels: Sequence[Level], limits: Limits, metrics: Metrics
    ) -> None:
        self.model = model
        self.config: Any = model.encoder.config
        self.limits = limits
        self.metrics = metrics
        self.running = 0
        self.batcher = Batcher(
            model,
            self._deliver,
            metrics,
            levels=levels,
            max_batch_tokens=limits.batch_tokens,
            max_queue_tokens=limits.queue_tokens,
            clock=time.monotonic,
        )
        # One thread: a tokenizer keeps how it cuts, and two would change it for each other.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")
        self._waiting: dict[Request, asyncio.Future[Request]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """From the event loop whose coroutines ask."""
        self._loop = asyncio.get_running_loop()
        self.batcher.start()

    async def drain(self) -> None:
        """Answer what is queued, and stop."""
        await asyncio.to_thread(self.batcher.drain)
        self._tokenizing.shutdown()

    async def answer(
        self, asks: Sequence[Ask], hang_up: Callable[[], Awaitable[None]]
    ) -> list[Reply]:
        """Answers of all that is asked together.

        Args:
            asks: each by its own speed.
            hang_up: returns when the client has gone.

        Raises:
            ApiError: what to tell the client.
            HungUpError: it has gone.
        """
        arrived = time.monotonic()
        for ask in asks:
            self._check(ask)
        requests: list[Request] = []
        taken: list[float] = []
        try:
            for ask in asks:
                begun = time.monotonic()
                requests.append(await self._tokenize(ask, arrived))
                taken.append(time.monotonic() - begun)
            await self._run(requests, hang_up)
        finally:
            for request in requests:  # nothing, where they are complete
                self.batcher.hang_up(request)
        return [
            self._reply(ask, request, seconds)
            for ask, request, seconds in zip(asks, requests, taken, strict=True)
        ]

    def _check(self, ask: Ask) -> None:
        size, most = len(ask.texts), self.limits.client_batch_size
        if size > most:
            message = f"batch size {size} > maximum allowed batch size {most}"
            raise validation(message, reason="batch_size")
        first, last = self.model.encoder.exit_layers[0], self.model.num_layers
        bound = ask.speed.max_layers
        if bound is not None and not first <= bound <= last:
            raise validation(f"max_layers: expected {first} to {last}, got {bound}")

    async def _tokenize(self, ask: Ask, arrived: float) -> Request:
        speed = ask.speed
        threshold = self._threshold(speed)
        loop = asyncio.get_running_loop()
        arguments = ask.texts, ask.truncate, ask.side
        try:
            rows = await loop.run_in_executor(self._tokenizing, self.model.tokenize, *arguments)
        except TooLongError as error:
            raise validation(f"Input validation error: {error}") from None
        except EmptyRowError as error:
            raise ApiError("Empty", str(error)) from None
        except (TypeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise ApiError("Tokenizer", f"Tokenizer error {line}") from error
        for row in rows:
            self.metrics.lengths.observe(len(row.ids))
        deadline = None if speed.deadline_ms is None else arrived + speed.deadline_ms / 1000
        return Request(rows, threshold, speed.level, speed.max_layers, deadline)

    def _threshold(self, speed: Speed) -> float | None:
        if speed.level is None:
            return speed.threshold
        try:
            return level_threshold(self.config, speed.level)
        except ValueError as error:
            raise validation(str(error)) from None

    async def _run(
        self, requests: Sequence[Request], hang_up: Callable[[], Awaitable[None]]
    ) -> None:
        loop = asyncio.get_running_loop()
        gone = asyncio.ensure_future(hang_up())
        waiting: set[asyncio.Future[Any]] = set()
        try:
            for request in requests:
                self._waiting[request] = loop.create_future()
                waiting.add(self._waiting[request])
                self._submit(request)
            while waiting:
                done, _ = await asyncio.wait({*waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                waiting -= done
                if gone in done and waiting:
                    raise HungUpError
        finally:
            gone.cancel()
            for request in requests:
                self._waiting.pop(request, None)
        for request in requests:
            if request.error is not None:
                raise _told(request.error)

    def _submit(self, request: Request) -> None:
        try:
            self.batcher.submit(request)
        except ValueError as error:
            raise validation(str(error)) from None
        except (OverloadedError, DrainingError) as error:
            raise _told(error) from None

    def _deliver(self, requests: list[Request]) -> None:
        """From the batcher's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed by a second signal
            self._loop.call_soon_threadsafe(self._resolve, requests)

    def _resolve(self, requests: list[Request]) -> None:
        for request in requests:
            future = self._waiting.get(request)
            if future is not None and not future.done():
                future.set_result(request)

    def _reply(self, ask: Ask, request: Request, tokenizing: float) -> Reply:
        answers = [answer for answer in request.answers if answer is not None]
        logits = torch.tensor([answer.logits for answer in answers])
        assert request.started is not None
        seconds = {
            "tokenization": tokenizing,
            "queue": request.started - request.submitted,
            "inference": request.finished - request.started,
        }
        self.metrics.predicted(len(answers), sum(seconds.values()))
        characters = sum(len(part) for text in ask.texts for part in _parts(text))
        shown = scores(logits, self.config, ask.raw_scores)
        return Reply(shown, answers, characters, request.tokens, seconds)


def _parts(text: str | tuple[str, str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _told(error: Exception) -> ApiError:
    """What a client is told of an error in the batcher."""
    if isinstance(error, OverloadedError):
        return ApiError("Overloaded", str(error), retry_after=error.retry_after)
    if isinstance(error, DrainingError):
        return ApiError("Unhealthy", "the server is shutting down", retry_after=1)
    line = " ".join(str(error).split()) or type(error).__name__
    return ApiError("Backend", f"Backend error: {line}")
