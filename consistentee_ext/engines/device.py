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
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Block, Stack
from consistentee_ext.ops import DeviceOps
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch

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


class DeviceEngine(Engine):
    """Blocks and exits of a device, launched without a wait.

    With ``sync="eager"`` the host reads how many rows are left after each exit layer, and the
    device waits for it. With ``"lagged"`` it reads the count of the exit layer before, while the
    device runs: a row that has left is computed for one more layer and discarded. ``"auto"``
    chooses by the number of tokens. Results are the same.
    """

    def __init__(self, stack: Stack, exits: Exits, ops: DeviceOps, sync: str) -> None:
        super().__init__(stack, exits)
        self._ops = ops
        self._sync = sync

    @override
    def with_exits(self, exits: Exits) -> DeviceEngine:
        return DeviceEngine(self.stack, exits, self._ops, self._sync)

    @override
    def advance(
        self, batch: PackedInputs | PackedBatch, first: int, last: int, results: ExitResults
    ) -> PackedBatch:
        if isinstance(batch, PackedInputs):
            max_length = batch.max_length  # read while the offsets are on the host
            batch = batch.to(results.logits.device)
            hidden = self.stack.embedding(batch.ids, batch.types, batch.positions, self._ops)
            batch = PackedBatch(hidden, batch.cu_seqlens, batch.row_ids)
        else:
            max_length = int(batch.cu_seqlens.diff().max()) if len(batch.row_ids) else 0
        if not len(batch.row_ids):
            return batch
        exits = self.exits
        with closing(Counts(len(exits.layers), batch.hidden.device, used=exits)) as counts:
            return self._run(batch, first, last, max_length, results, counts)

    def _run(
        self,
        batch: PackedBatch,
        first: int,
        last: int,
        max_length: int,
        results: ExitResults,
        counts: Counts,
    ) -> PackedBatch:
        decisions = self.exits.decisions(len(results.logits))
        sync = choose_sync(self._sync, len(batch.hidden))
        tickets = torch.zeros(len(batch.row_ids), dtype=torch.int32, device=batch.hidden.device)
        for layer, block in enumerate(self.stack.blocks[first:last], start=first + 1):
            if layer not in decisions:
                batch = block(batch, self._ops, max_length)
                continue
            batch = self._run_exit_layer(
                block, layer, batch, max_length, decisions[layer], results, tickets, counts
            )
            if decisions[layer].last:
                return _cut(batch, 0, 0)
            counts.mark()
            known = counts.made if sync == "eager" else counts.made - 1
            if known:
                batch = _cut(batch, *counts.read(known))
                if not len(batch.row_ids):
                    return batch
        return _cut(batch, *counts.read(counts.made)) if counts.made else batch

    def _run_exit_layer(
        self,
        block: Block,
        layer: int,
        batch: PackedBatch,
        max_length: int,
        decision: ExitDecision,
        results: ExitResults,
        tickets: Tensor,
        counts: Counts,
    ) -> PackedBatch:
        """A block whose last norm pools the rows as well, and the exit step behind it."""
        ops, exit_ = self._ops, self.exits.by_layer[layer]
        out, hidden = block.before_last_norm(batch, ops, max_length)
        pooled = ops.add_norm_pool(
            hidden,
            out.hidden,
            *block.mlp_norm,
            out.cu_seqlens,
            1 if block.attention.first_tokens_only else max_length,
            exit_.pooling,
            tickets,
        )
        product = ops.linear(pooled, exit_.pooler)
        return ops.exit_step_async(
            out._replace(hidden=hidden),
            product,
            exit_.weights,
            decision,
            results,
            tickets,
            counts.next(),
        )


def _cut(batch: PackedBatch, rows: int, tokens: int) -> PackedBatch:
    return PackedBatch(batch.hidden[:tokens], batch.cu_seqlens[: rows + 1], batch.row_ids[:rows])
