"""How many rows each exit step left: written by a device, read by the host later."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

# What a device may still write or read, each with the event behind the last kernel of the pass.
_in_flight: deque[tuple[torch.cuda.Event, object]] = deque()


def keep_until(event: torch.cuda.Event, used: object) -> None:
    """Keep what kernels use until the event has come."""
    _in_flight.append((event, used))


def drop_finished() -> None:
    """Let go of what finished passes used."""
    while _in_flight:
        event, kept = _in_flight.popleft()
        if not event.query():
            _in_flight.appendleft((event, kept))
            return


class Counts:
    """Rows and tokens left after each exit step: the device writes them to memory of the host.

    A pass ends on the host while its kernels are still to run, and torch's allocators do not know
    of all that they use: `close` keeps the counts' pinned memory until they have run, and `used`,
    which a caller may drop meanwhile (thresholds that others replace, say).

    Attributes:
        totals: ``[E, 2]`` int32, rows and tokens left by each exit step.
        made: how many exit steps were launched from Python.
    """

    def __init__(self, exits: int, device: torch.device, used: object = None) -> None:
        drop_finished()
        self._device = device
        self._used = used
        self._on_device = device.type == "cuda"
        self.totals = torch.zeros(exits, 2, dtype=torch.int32, pin_memory=self._on_device)
        self._events: list[torch.cuda.Event] = []
        self.made = 0

    def next(self) -> Tensor:
        """Where the next exit step writes its counts, ``[2]`` int32."""
        self.made += 1
        return self.totals[self.made - 1]

    def mark(self) -> None:
        """The newest exit step is launched."""
        if self._on_device:
            self._events.append(torch.cuda.current_stream(self._device).record_event())

    def read(self, number: int) -> tuple[int, int]:
        """Rows and tokens after exit step `number` (1-based), once it has run."""
        if self._on_device:
            self._events[number - 1].synchronize()
        rows, tokens = self.totals[number - 1].tolist()
        return rows, tokens

    def close(self) -> None:
        """No exit step is launched any more."""
        self.mark()
        if self._events:
            keep_until(self._events[-1], (self.totals, self._used))
