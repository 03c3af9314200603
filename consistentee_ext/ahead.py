"""A pass on a device: launches go ahead of it, counts of survivors come back behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from consistentee_ext import ops
from consistentee_ext.backbones import PackedBert
from consistentee_ext.exits import Exit
from consistentee_ext.packed import ExitDecision, ExitState, PackedBatch

SYNC = ("auto", "eager", "lagged")
# Up to about this many tokens the wait for every count costs more than rows that stay a layer too
# long: on an H200 the lagged host was as fast or faster up to 65,536 tokens, the eager one by 1% at
# 262,144 (docs/gpu.md).
KNEE_TOKENS = 131072


def choose_sync(sync: str, tokens: int) -> str:
    """``eager`` from `KNEE_TOKENS` tokens on, else ``lagged``, where `sync` leaves it open."""
    if sync != "auto":
        return sync
    return "eager" if tokens >= KNEE_TOKENS else "lagged"


# Counts that a device may still write, each with the event behind their last kernel.
_in_flight: deque[tuple[torch.cuda.Event, Tensor]] = deque()


def _drop_finished() -> None:
    while _in_flight:
        event, totals = _in_flight.popleft()
        if not event.query():
            _in_flight.appendleft((event, totals))
            return


class Counts:
    """Rows and tokens left after each exit step: the device writes them to memory of the host.

    A pass ends on the host while kernels that write are still to run, and torch's allocator of
    pinned memory does not know of them: `close` keeps the memory until they have.
    """

    def __init__(self, exits: int, device: torch.device) -> None:
        _drop_finished()
        self._device = device
        self._on_device = device.type == "cuda"
        self._totals = torch.zeros(exits, 2, dtype=torch.int32, pin_memory=self._on_device)
        self._events: list[torch.cuda.Event] = []
        self.made = 0

    def next(self) -> Tensor:
        """Where the next exit step writes its counts, ``[2]`` int32."""
        self.made += 1
        return self._totals[self.made - 1]

    def mark(self) -> None:
        """The newest exit step is launched."""
        if self._on_device:
            self._events.append(torch.cuda.current_stream(self._device).record_event())

    def read(self, number: int) -> tuple[int, int]:
        """Rows and tokens after exit step `number` (1-based), once it has run."""
        if self._on_device:
            self._events[number - 1].synchronize()
        rows, tokens = self._totals[number - 1].tolist()
        return rows, tokens

    def close(self) -> None:
        """No exit step is launched any more."""
        self.mark()
        if self._events:
            _in_flight.append((self._events[-1], self._totals))


def run_ahead(
    trunk: PackedBert,
    exits: dict[int, Exit],
    decisions: Sequence[ExitDecision],
    batch: PackedBatch,
    max_length: int,
    results: ExitState,
    sync: str,
) -> None:
    """Classify the rows of `batch`, none longer than `max_length`, which index `results`.

    With ``sync="eager"`` the host reads how many rows are left after each exit layer, and the
    device waits for it. With ``"lagged"`` it reads the count of the exit layer before, while the
    device runs: a row that left is computed for one layer more, as nobody's. Results are the same.

    Args:
        decisions: one an exit, in their order.
    """
    device = batch.hidden.device
    counters = torch.zeros(len(batch.row_ids), dtype=torch.int32, device=device)
    order = iter(decisions)
    with closing(Counts(len(exits), device)) as counts:
        for layer in range(1, len(trunk.layers) + 1):
            if layer not in exits:
                batch = trunk.run_layer(layer - 1, batch, max_length)
                continue
            head, decision = exits[layer], next(order)
            batch, pooled = trunk.run_exit_layer(
                layer - 1, batch, max_length, head.pooling, counters
            )
            batch = ops.exit_step_ahead(
                batch,
                head.pooler(pooled),
                head.weights,
                decision,
                results,
                (counters, counts.next()),
                trunk.backend,
            )
            if decision.last:
                return
            counts.mark()
            known = counts.made if sync == "eager" else counts.made - 1
            if known:
                rows, tokens = counts.read(known)
                if not rows:
                    return
                batch = PackedBatch(
                    batch.hidden[:tokens], batch.cu_seqlens[: rows + 1], batch.row_ids[:rows]
                )
