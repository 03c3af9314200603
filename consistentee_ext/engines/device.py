"""The engine of a device: kernels are enqueued without waiting, counts of survivors are read back
later.
"""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor
from typing_extensions import override

from consistentee_ext.engines.base import Engine
from consistentee_ext.engines.counts import Counts
from consistentee_ext.engines.exit_layer import run_exit_layer
from consistentee_ext.engines.graphs import PassGraphs
from consistentee_ext.engines.launcher import Launcher
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Stack
from consistentee_ext.ops import DeviceOps
from consistentee_ext.packed import ExitResults, PackedBatch

SYNC = ("auto", "eager", "lagged")
# Up to about this many tokens the wait for every count costs more than rows that stay a layer too
# long: on an H200 the lagged host was 3 to 6% faster at 16,384 tokens, the eager one as much at
# 65,536 and 262,144 (docs/gpu.md).
KNEE_TOKENS = 32768


def choose_sync(sync: str, tokens: int) -> str:
    """``eager`` from `KNEE_TOKENS` tokens on, else ``lagged``, where `sync` leaves it open."""
    if sync != "auto":
        return sync
    return "eager" if tokens >= KNEE_TOKENS else "lagged"


class DeviceEngine(Engine):
    """Blocks and exits of a device, launched without a wait.

    With ``sync="eager"`` the host reads how many rows are left after each exit layer, and the
    device waits for it. With ``"lagged"`` it reads the count of the exit layer before, while the
    device runs: a row that has left is computed for one more layer and discarded. ``"auto"``
    chooses by the number of tokens. Results are the same.

    With `graphs`, a whole pass over few enough tokens is replayed (`PassGraphs`). Else its layers
    are launched by one call of a `launcher`, or from Python, because of what `declined` says.
    """

    stack: Stack

    def __init__(
        self,
        stack: Stack,
        exits: Exits,
        ops: DeviceOps,
        sync: str,
        graphs: PassGraphs | None = None,
        launcher: Launcher | None = None,
        declined: str | None = None,
    ) -> None:
        super().__init__(stack, exits)
        self.description = "kernels launched by one call into C++"
        if launcher is None:
            self.description = f"kernels launched from Python, {declined}"
        self._declined = declined
        self._ops = ops
        self._sync = sync
        self._graphs = graphs
        self._launcher = launcher
        words = stack.embedding.words
        self._none_left = PackedBatch(
            words.new_empty(0, stack.hidden_size),
            words.new_zeros(1, dtype=torch.int32),
            words.new_empty(0, dtype=torch.int64),
        )

    @override
    def with_exits(self, exits: Exits) -> DeviceEngine:
        graphs = self._graphs and self._graphs.with_exits(exits)
        launcher = self._launcher and self._launcher.with_exits(exits)
        parts = (self._ops, self._sync, graphs, launcher, self._declined)
        return DeviceEngine(self.stack, exits, *parts)

    @override
    def classify(self, inputs: PackedInputs) -> ExitResults:
        with torch.inference_mode():
            found = self._replay(inputs)
        if found is not None:
            return found
        # Made outside of the mode, so that callers may change them and compute gradients with them.
        results = ExitResults.empty(len(inputs.row_ids), self.exits.num_classes, self._device)
        with torch.inference_mode():
            self._launch(inputs, 0, self.stack.num_layers, results, None)
        return results

    def _replay(self, inputs: PackedInputs) -> ExitResults | None:
        """A whole pass by graphs, where there are graphs that take it: they have one threshold a
        layer. What a launcher can launch is recorded from its second time on.
        """
        if self._graphs is None or self.exits.row_thresholds is not None:
            return None
        if self._launcher is not None and self._graphs.is_new(inputs):
            return None
        eager = choose_sync(self._sync, len(inputs.ids)) == "eager"
        return self._graphs.run(inputs, self.exits, eager)

    @override
    def advance(
        self,
        batch: PackedInputs | PackedBatch,
        first: int,
        last: int,
        results: ExitResults,
        firsts: Tensor | None = None,
    ) -> PackedBatch:
        if isinstance(batch, PackedInputs) and last == self.stack.num_layers:
            numbers = torch.arange(len(batch.row_ids))
            found = self._replay(batch._replace(row_ids=numbers))
            if found is not None:
                rows = batch.row_ids.to(results.logits.device)
                for target, source in zip(results, found, strict=True):
                    target.index_copy_(0, rows, source)
                return self._none_left
        return self._launch(batch, first, last, results, firsts)

    def _launch(
        self,
        batch: PackedInputs | PackedBatch,
        first: int,
        last: int,
        results: ExitResults,
        firsts: Tensor | None,
    ) -> PackedBatch:
        """`advance` without graphs."""
        if isinstance(batch, PackedInputs):
            max_length = batch.max_length  # read while the offsets are on the host
            firsts = self.exits.first_lengths(batch)
            batch = batch.to(results.logits.device)
            hidden = self.stack.embedding(batch.ids, batch.types, batch.positions, self._ops)
            batch = PackedBatch(hidden, batch.cu_seqlens, batch.row_ids)
        else:
            max_length = int(batch.cu_seqlens.diff().max()) if len(batch.row_ids) else 0
        if not len(batch.row_ids):
            return batch
        device = batch.hidden.device
        if firsts is not None and firsts.device != device:
            # From pinned memory, so that the host does not wait.
            firsts = firsts.pin_memory().to(device, non_blocking=True)
        exits = self.exits
        with closing(Counts(len(exits.layers), device, used=exits)) as counts:
            return self._run(batch, first, last, max_length, results, firsts, counts)

    def _run(
        self,
        batch: PackedBatch,
        first: int,
        last: int,
        max_length: int,
        results: ExitResults,
        firsts: Tensor | None,
        counts: Counts,
    ) -> PackedBatch:
        sync = choose_sync(self._sync, len(batch.hidden))
        tickets = torch.zeros(len(batch.row_ids), dtype=torch.int32, device=batch.hidden.device)
        if self._launcher is not None:
            return self._launcher.run(
                batch,
                first,
                last,
                max_length,
                self.exits,
                results,
                firsts,
                tickets,
                counts.totals,
                eager=sync == "eager",
            )
        decisions = self.exits.decisions(len(results.logits))
        for layer, block in enumerate(self.stack.blocks[first:last], start=first + 1):
            if layer not in decisions:
                batch = block(batch, self._ops, max_length)
                continue
            batch = run_exit_layer(
                block,
                self.exits.by_layer[layer],
                batch,
                max_length,
                self._ops,
                decisions[layer],
                results,
                tickets,
                counts.next(),
                firsts=firsts,
            )
            if decisions[layer].last:
                return self._none_left
            counts.mark()
            known = counts.made if sync == "eager" else counts.made - 1
            if known:
                batch = _cut(batch, *counts.read(known))
                if not len(batch.row_ids):
                    return batch
        return _cut(batch, *counts.read(counts.made)) if counts.made else batch


def _cut(batch: PackedBatch, rows: int, tokens: int) -> PackedBatch:
    return PackedBatch(batch.hidden[:tokens], batch.cu_seqlens[: rows + 1], batch.row_ids[:rows])
