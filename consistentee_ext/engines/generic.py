"""The engine that runs the modules of Hugging Face, for models of no family here."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from consistentee_ext.engines.base import Engine
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import GenericStack
from consistentee_ext.layers.hooks import UnsupportedError
from consistentee_ext.ops import HostOps, LayerOps
from consistentee_ext.packed import ExitResults, PackedBatch


class GenericEngine(Engine):
    """A model's own layers on packed rows, with our attention and exits between the layers.

    It takes the Python and the products of the Hugging Face model; it saves the padding, and the
    layers behind an exit. The host waits for the survivors of each exit.
    """

    stack: GenericStack
    description = "transformers' own layers on packed rows"
    stops_between_layers = False

    def __init__(
        self, stack: GenericStack, exits: Exits, layer_ops: LayerOps, exit_ops: HostOps
    ) -> None:
        super().__init__(stack, exits)
        self._layer_ops = layer_ops
        self._exit_ops = exit_ops

    @override
    def with_exits(self, exits: Exits) -> GenericEngine:
        return GenericEngine(self.stack, exits, self._layer_ops, self._exit_ops)

    @override
    def advance(
        self,
        batch: PackedInputs | PackedBatch,
        first: int,
        last: int,
        results: ExitResults,
        firsts: Tensor | None = None,
    ) -> PackedBatch:
        num_layers = self.stack.num_layers
        if not isinstance(batch, PackedInputs) or (first, last) != (0, num_layers):
            raise ValueError(
                f"first, last: expected 0 and {num_layers}, as the model's forward runs the layers "
                f"in one call, got {first} and {last}"
            )
        if not len(batch.row_ids):
            return PackedBatch(results.logits[:0], batch.cu_seqlens, batch.row_ids)
        ops = self._exit_ops
        decisions = self.exits.decisions(len(results.logits))
        firsts = self.exits.first_lengths(batch)
        if firsts is not None:
            firsts = firsts.to(self.stack.device)

        def leave(layer: int, batch: PackedBatch) -> PackedBatch:
            if layer not in decisions or not len(batch.row_ids):
                return batch
            exit_ = self.exits.by_layer[layer]
            product = exit_.product(batch, ops, ops.pool, firsts)
            return ops.exit_step(batch, product, exit_.weights, decisions[layer], results)

        try:
            return leave(num_layers, self.stack(batch, self._layer_ops, leave))
        except UnsupportedError as error:
            raise ValueError(
                f"input_ids: this model cannot run these rows packed: {error}"
            ) from error
