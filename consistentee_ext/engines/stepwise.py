"""A pass from exit to exit, so that each row's answer can be had when the row leaves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from consistentee_ext.engines.base import Engine
from consistentee_ext.exits.rows import ALL_LEAVE
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.packed import ExitResults, PackedBatch


class StepwisePass:
    """One pass over N rows, a step from each exit layer to the next.

    Args:
        engine: runs the steps.
        inputs: ``row_ids`` are the numbers from 0 to N - 1 in some order.
        thresholds: ``[E, N]`` float32 of `row_thresholds`; the pass keeps and changes it.

    Attributes:
        results: of the N rows; those of a row are there once it has left.
    """

    def __init__(self, engine: Engine, inputs: PackedInputs, thresholds: Tensor) -> None:
        self._engine = engine.with_exits(replace(engine.exits, row_thresholds=thresholds))
        self._thresholds = thresholds
        self._batch: PackedInputs | PackedBatch = inputs
        # A copy on the host knows the rows that are left without asking a device.
        self._rows = inputs.row_ids
        self._firsts = engine.exits.first_lengths(inputs)
        self._layer = 0
        device = engine.stack.device
        classes = engine.exits.num_classes
        self.results = ExitResults.empty(len(inputs.row_ids), classes, device)

    @property
    def rows(self) -> Tensor:
        """The rows that have not left, ``[B]`` int64 on the host."""
        return self._rows

    def work(self, steps: int) -> int:
        """Tokens times layers of the next steps, if no row leaves before their end."""
        tokens = self._batch.ids if isinstance(self._batch, PackedInputs) else self._batch.hidden
        layers = [layer for layer in self._engine.exits.layers if layer > self._layer][:steps]
        return len(tokens) * (layers[-1] - self._layer if layers else 0)

    def release(self, rows: list[int]) -> None:
        """These rows leave at the next exit layer, whatever their scores there."""
        self._thresholds[:, torch.tensor(rows, device=self._thresholds.device)] = ALL_LEAVE

    def step(self, whole: bool = False) -> Tensor:
        """Run to the next exit layer, or to the last one; the rows that left, ``[k]`` int64.

        An engine that does not stop between layers runs to the last one.
        """
        engine = self._engine
        layers = [layer for layer in engine.exits.layers if layer > self._layer]
        last = layers[-1] if whole or not engine.stops_between_layers else layers[0]
        device = self.results.logits.device
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            self._batch = engine.advance(
                self._batch, self._layer, last, self.results, firsts=self._firsts
            )
        self._layer = last
        before, self._rows = self._rows, self._batch.row_ids.cpu()
        gone = self.results.exit_layers.cpu()[before] > 0
        return before[gone]
