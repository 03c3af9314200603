"""The engine that calls op by op: what the other engines are compared with."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from consistentee_ext.engines.base import Engine
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Stack
from consistentee_ext.ops import HostOps
from consistentee_ext.packed import ExitResults, PackedBatch


class EagerEngine(Engine):
    """Each block and each exit step is a few calls from Python; the host knows all survivors."""

    stack: Stack
    description = "op by op"

    def __init__(self, stack: Stack, exits: Exits, ops: HostOps) -> None:
        super().__init__(stack, exits)
        self._ops = ops

    @override
    def with_exits(self, exits: Exits) -> EagerEngine:
        return EagerEngine(self.stack, exits, self._ops)

    @override
    def advance(
        self,
        batch: PackedInputs | PackedBatch,
        first: int,
        last: int,
        results: ExitResults,
        firsts: Tensor | None = None,
    ) -> PackedBatch:
        ops = self._ops
        if isinstance(batch, PackedInputs):
            firsts = self.exits.first_lengths(batch)
            hidden = self.stack.embedding(batch.ids, batch.types, batch.positions, ops)
            batch = PackedBatch(hidden, batch.cu_seqlens, batch.row_ids)
        decisions = self.exits.decisions(len(results.logits))
        for layer, block in enumerate(self.stack.blocks[first:last], start=first + 1):
            if not len(batch.row_ids):
                break
            batch = block(batch, ops)
            if layer in decisions:
                exit_ = self.exits.by_layer[layer]
                product = exit_.product(batch, ops, ops.pool, firsts)
                batch = ops.exit_step(batch, product, exit_.weights, decisions[layer], results)
        return batch
