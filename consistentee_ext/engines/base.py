"""The interface of the engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import GenericStack, Stack
from consistentee_ext.packed import ExitResults, PackedBatch


class Engine(ABC):
    """A stack and its exits, ready to run. It never changes: other exits make another engine.

    Args:
        stack: embedding and blocks, or a module that stands for them.
        exits: where and how rows leave.

    Attributes:
        description: what runs, in a few words.
        stops_between_layers: whether `advance` takes a part of the layers.
    """

    description: str
    stops_between_layers = True

    def __init__(self, stack: Stack | GenericStack, exits: Exits) -> None:
        self.stack: Any = stack
        self._device = stack.device
        self.exits = exits

    @abstractmethod
    def with_exits(self, exits: Exits) -> Engine:
        """An engine of the same stack with these exits."""

    def classify(self, inputs: PackedInputs) -> ExitResults:
        """A whole pass; the results are the caller's.

        Args:
            inputs: ``row_ids`` are the numbers from 0 to B - 1 in some order, that of the results.
        """
        # Made outside of the mode, so that callers may change them and compute gradients with them.
        results = ExitResults.empty(len(inputs.row_ids), self.exits.num_classes, self._device)
        with torch.inference_mode():
            self.advance(inputs, 0, self.stack.num_layers, results)
        return results

    @abstractmethod
    def advance(
        self,
        batch: PackedInputs | PackedBatch,
        first: int,
        last: int,
        results: ExitResults,
        firsts: Tensor | None = None,
    ) -> PackedBatch:
        """Run blocks `first` to ``last - 1`` with their exits; returns the rows that are left.

        A whole pass is ``advance(inputs, 0, L, results)``, after which no row is left.

        Args:
            batch: packed inputs where `first` is 0, else what an advance to `first` returned. Its
                ``row_ids`` index `results`.
            first: from 0.
            last: more than `first`, at most L.
            results: of the N rows, written in place.
            firsts: what `Exits.first_lengths` gave of the inputs, where `first` is not 0 and exits
                compare the two texts of a row.
        """
