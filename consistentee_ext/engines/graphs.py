"""A whole pass as CUDA graphs: one for the layers up to each exit, for batches of about one size.

From Python a layer takes a slow host 380 us to launch, which the kernels of a small batch take 45
us to run; a graph is one launch for all layers up to the next exit. A graph has fixed addresses and
sizes. So its inputs and outputs lie in memory of its own, and it runs on somewhat more tokens and
rows than there are: those behind the last row are computed and never read (docs/gpu.md).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import partial

import torch

from consistentee_ext.engines.counts import drop_finished, keep_until
from consistentee_ext.engines.exit_layer import run_exit_layer
from consistentee_ext.engines.room import (
    Inputs,
    Room,
    fill,
    length_size,
    results_within,
    row_size,
    token_size,
)
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Stack
from consistentee_ext.ops import DeviceOps
from consistentee_ext.packed import ExitResults, PackedBatch

MOST_TOKENS = 65536  # of a batch; beyond it kernels take longer than their launches
MOST_GRAPHS = 1024

Replay = Callable[[], object]
Record = Callable[[Replay], Replay]


class Recorder:
    """Makes CUDA graphs that share their temporary memory: none reads what another left there."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        """A replay of all that `run` launches, which is not run now; where it cannot be recorded,
        `run` itself.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            torch.cuda.current_blas_handle()  # a thread's first one is made outside of a capture
            try:
                # Other threads may do meanwhile what a capture forbids.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    run()
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                message = f"a CUDA graph could not be recorded, launched layer by layer: {reason}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
                return run
        return graph.replay


class PassGraphs:
    """The graphs of a stack and its exits.

    A size that comes for the first time is launched from Python, or left to who asks `is_new`; from
    the second time on its graphs are recorded and replayed. One pass at a time has the memory.

    Args:
        stack: on the device.
        exits: on the device.
        ops: the device's.
        recorder: makes what records graphs; one a `Room`.
    """

    def __init__(
        self, stack: Stack, exits: Exits, ops: DeviceOps, recorder: Callable[[], Record]
    ) -> None:
        self._stack = stack
        self._exits = exits
        self._ops = ops
        self._recorder = recorder
        self._device = stack.embedding.words.device
        self._on_gpu = self._device.type == "cuda"
        self._lock = threading.Lock()
        self._room: Room | None = None
        self._seen: set[tuple[int, ...]] = set()
        self._left: set[tuple[int, ...]] = set()  # the first graphs of passes that were left
        self._replays: dict[tuple[int, ...], Replay] = {}
        self._thresholds = exits.thresholds(1).clone()
        self._thresholds_of = exits
        exit_count = len(exits.layers)
        self._totals = torch.zeros(exit_count, 2, dtype=torch.int32, pin_memory=self._on_gpu)
        # The same memory, read without a call of torch.
        self._counts = self._totals.numpy()
        self._events = [torch.cuda.Event() for _ in range(exit_count if self._on_gpu else 0)]
        self._idle: torch.cuda.Event | None = None

    def with_exits(self, exits: Exits) -> PassGraphs:
        """Graphs for these exits: the same where thresholds alone differ."""
        same = exits.by_layer is self._exits.by_layer and exits.criterion == self._exits.criterion
        return self if same else PassGraphs(self._stack, exits, self._ops, self._recorder)

    def is_new(self, inputs: PackedInputs) -> bool:
        """Whether inputs of this size come for the first time: who then launches them by other
        means spares a recording that may never be replayed.
        """
        if not 0 < len(inputs.ids) <= MOST_TOKENS:
            return False
        key = (1, *self._sizes(inputs))
        new = key not in self._left and key not in self._replays
        self._left.add(key)
        return new

    def run(self, inputs: PackedInputs, exits: Exits, eager: bool) -> ExitResults | None:
        """A pass from the embedding to the last exit; None where it must be run without graphs.

        Args:
            inputs: on the host; ``row_ids`` are the numbers from 0 to B - 1 in some order.
            exits: those of the graphs, or with other thresholds.
            eager: whether the host waits for each count before it goes on.
        """
        if not 0 < len(inputs.ids) <= MOST_TOKENS or not self._lock.acquire(blocking=False):
            return None
        try:
            return self._run(inputs, exits, eager)
        finally:
            self._lock.release()

    def _run(self, inputs: PackedInputs, exits: Exits, eager: bool) -> ExitResults:
        stream = torch.cuda.current_stream(self._device) if self._on_gpu else None
        count = len(inputs.row_ids)
        tokens, rows, longest = self._sizes(inputs)
        room = self._enter(tokens, rows, stream)
        self._send(room, inputs, exits, tokens, rows)
        last = len(exits.layers)
        for number in range(1, last + 1):
            self._step(room, number, tokens, rows, longest)
            if number == last:
                break
            if stream is not None:
                self._events[number - 1].record(stream)
            known = number if eager else number - 1
            if known:
                left, tokens_left = self._read(known)
                if not left:
                    break
                tokens = token_size(tokens_left + (rows > left))
        with torch.inference_mode(False):  # callers may change results and compute gradients
            results = results_within(room.results.clone(), room.rows, count)
        if stream is not None:
            self._idle = self._idle or torch.cuda.Event()
            self._idle.record(stream)
            drop_finished()
            keep_until(self._idle, (self, room))
        return results

    def _sizes(self, inputs: PackedInputs) -> tuple[int, int, int]:
        """Tokens, rows and the longest row of the graphs for these inputs."""
        count = len(inputs.row_ids)
        rows = row_size(count)
        # Tables by a token's place, of rotations say, may end before the next size.
        most = self._stack.embedding.limits.max_length
        longest = max(inputs.max_length, min(length_size(inputs.max_length), most))
        # An absent row has a first token, too, which must lie in the batch.
        return token_size(len(inputs.ids) + (rows > count)), rows, longest

    def _read(self, number: int) -> tuple[int, int]:
        """Rows and tokens after exit `number`, once it has run."""
        if self._on_gpu:
            self._events[number - 1].synchronize()
        rows, tokens = self._counts[number - 1]
        return int(rows), int(tokens)

    def _enter(self, tokens: int, rows: int, stream: torch.cuda.Stream | None) -> Room:
        """Memory of this size at least; the stream waits for the pass that had it before."""
        if stream is not None and self._idle is not None:
            stream.wait_event(self._idle)
        room = self._room
        if room is None or room.tokens < tokens or room.rows < rows:
            if self._idle is not None:
                self._idle.synchronize()  # before memory in use is given away
            self._replays.clear()
            self._seen.clear()
            tokens, rows = (max(2, 1 << (n - 1).bit_length()) for n in (tokens, rows))
            if room is not None:
                tokens, rows = max(tokens, room.tokens), max(rows, room.rows)
            # Graphs share memory that is theirs until the last of them is gone.
            self._record = self._recorder()
            self._room = room = Room(tokens, rows, self._stack, self._exits.num_classes)
        return room

    def _send(self, room: Room, inputs: PackedInputs, exits: Exits, tokens: int, rows: int) -> None:
        """Inputs and thresholds to the device; the host waits for nothing."""
        size = Inputs.bytes(tokens, rows)
        flat = torch.empty(size, dtype=torch.uint8, pin_memory=self._on_gpu)
        fill(flat, inputs, exits.first_lengths(inputs), tokens, rows)
        room.inputs[:size].copy_(flat, non_blocking=self._on_gpu)
        if self._thresholds_of is not exits:
            self._thresholds.copy_(exits.thresholds(1))
            self._thresholds_of = exits

    def _step(self, room: Room, number: int, tokens: int, rows: int, longest: int) -> None:
        """The layers up to exit `number`: launched, or replayed."""
        key = (number, tokens, rows, longest)
        replay = self._replays.get(key)
        if replay is None:
            replay = partial(self._launch, room, *key)
            known = key in self._seen or key in self._left
            if known and len(self._replays) < MOST_GRAPHS:
                replay = self._replays[key] = self._record(replay)
            self._seen.add(key)
        replay()

    def _launch(self, room: Room, number: int, tokens: int, rows: int, longest: int) -> None:
        """All that a graph holds."""
        ops, layers = self._ops, self._exits.layers
        results = results_within(room.results, room.rows, rows)
        inputs = Inputs.within(room.inputs, tokens, rows, torch.int64, torch.int32)
        first, last = 0 if number == 1 else layers[number - 2], layers[number - 1]
        if number == 1:
            results.labels.fill_(-1)
            results.streaks.zero_()
            hidden = self._stack.embedding(inputs.ids, inputs.types, inputs.positions, ops)
            batch = PackedBatch(hidden, inputs.cu_seqlens, inputs.row_ids)
        else:
            batch = room.batch(number - 1, tokens, rows)
        *bare, block = self._stack.blocks[first:last]
        for layer in bare:
            batch = layer(batch, ops, longest)
        decision = self._exits.decisions(rows)[last]
        run_exit_layer(
            block,
            self._exits.by_layer[last],
            batch,
            longest,
            ops,
            decision._replace(thresholds=self._thresholds[number - 1].expand(rows)),
            results,
            room.tickets,
            self._totals[number - 1],
            room.batch(number, tokens, rows),
            firsts=inputs.first_lengths,
        )
