"""A whole pass in one call: the encoder as the C++ op `classify` knows it."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from consistentee_ext.backbones import PackedBert
from consistentee_ext.exits import Exit
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.ops import CRITERION_CODES, POLICY_CODES
from consistentee_ext.packed import ExitState


class NativeEncoder:
    """Layers and exits laid out once, so that a pass over a batch is one call from Python.

    It computes what `FastEarlyExitEncoder`'s loop over layers does op by op.
    """

    def __init__(self, trunk: PackedBert, exits: dict[int, Exit]) -> None:
        policy_inputs = {e.weights.policy_input for e in exits.values()} - {None}
        self._number: int = torch.ops.consistentee.new_encoder.default(
            [*trunk.tables, *trunk.embedding_norm[:2]],
            _layer_tensors(trunk),
            trunk.num_heads,
            trunk.embedding_norm.eps,
            trunk.layers[-1].up.activation,
            trunk.layers[-1].up.algorithm,
            [tensor for e in exits.values() for tensor in _exit_tensors(e)],
            list(exits),
            exits[len(trunk.layers)].pooling == "mean",
            POLICY_CODES[policy_inputs.pop() if policy_inputs else None],
        )
        weakref.finalize(self, torch.ops.consistentee.free_encoder.default, self._number)

    def classify(
        self, inputs: PackedInputs, thresholds: list[float], criterion: str, results: ExitState
    ) -> None:
        """Classify the rows of `inputs`, which index `results`; one threshold an exit layer."""
        torch.ops.consistentee.classify.default(
            *inputs, self._number, thresholds, CRITERION_CODES[criterion], *results
        )


def native_encoder(trunk: PackedBert, exits: dict[int, Exit], backend: str) -> NativeEncoder | None:
    """The whole pass in one call, where it can be: on the ``cpu`` backend, every product packed
    for oneDNN, one kind of policy at all exits but the last.
    """
    *early, last = (e.weights.policy_input for e in exits.values())
    linears = [linear for layer in trunk.layers for linear in layer.linears]
    linears += [e.pooler for e in exits.values()]
    norms = [trunk.embedding_norm, *(norm for layer in trunk.layers for norm in layer.norms)]
    alike = len(set(early)) <= 1 and last is None and len({norm.eps for norm in norms}) == 1
    if backend != "cpu" or not alike or not all(linear.packed for linear in linears):
        return None
    return NativeEncoder(trunk, exits)


def _layer_tensors(trunk: PackedBert) -> list[Tensor]:
    tensors: list[Tensor] = []
    for layer in trunk.layers:
        tensors += [layer.query.weight, layer.query.bias]
        tensors += [layer.attention_output.weight, layer.attention_output.bias]
        tensors += layer.attention_norm[:2]
        tensors += [layer.up.weight, layer.up.bias, layer.down.weight, layer.down.bias]
        tensors += layer.output_norm[:2]
    last = trunk.layers[-1].key_value
    return tensors if last is None else [*tensors, last.weight, last.bias]


def _exit_tensors(exit_: Exit) -> list[Tensor]:
    weights = [tensor for tensor in exit_.weights[:6] if tensor is not None]
    return [exit_.pooler.weight, exit_.pooler.bias, *weights]
