"""The layers of a device engine launched by one C++ call, without Python between the kernels."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from consistentee_ext.engines.native import linear_arguments, norm_arguments
from consistentee_ext.engines.removal_costs import RemovalCosts
from consistentee_ext.exits.exit import Exit
from consistentee_ext.exits.exits import Exits
from consistentee_ext.layers import Block, Stack
from consistentee_ext.ops.flash import flash_arguments, why_no_flash
from consistentee_ext.ops.schema import CRITERION_CODES, head_arguments
from consistentee_ext.packed import ExitResults, PackedBatch
from consistentee_ext.weights import PLAIN

_ACTIVATIONS = (None, "gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh")


class Launcher:
    """Blocks and exits laid out once in C++ (csrc/device/engine.h): what `DeviceEngine` launches,
    it launches.

    Where the host is lagged, rows that have left stay in the batch until removing them pays.

    Args:
        stack: on the device, and one that `declines` does not decline.
        exits: likewise.
        costs: where removing rows pays.
    """

    def __init__(self, stack: Stack, exits: Exits, costs: RemovalCosts | None = None) -> None:
        self._stack = stack
        self._exits = exits
        self._costs = costs or RemovalCosts.measured(stack)
        self._number = _number_of(stack, exits, self._costs)
        weakref.finalize(self, torch.ops.consistentee.device_engine_free.default, self._number)
        self._one_query = stack.blocks[-1].attention.one_query

    def with_exits(self, exits: Exits) -> Launcher:
        """For these exits: the same where thresholds or the criterion alone differ."""
        same = exits.by_layer is self._exits.by_layer
        return self if same else Launcher(self._stack, exits, self._costs)

    def run(
        self,
        batch: PackedBatch,
        first: int,
        last: int,
        max_length: int,
        exits: Exits,
        results: ExitResults,
        firsts: Tensor | None,
        tickets: Tensor,
        totals: Tensor,
        eager: bool,
    ) -> PackedBatch:
        """`Engine.advance` of a batch whose rows have at most `max_length` tokens.

        Args:
            exits: those of the launcher, or with other thresholds or another criterion.
            tickets: ``[B]`` int32, zeros.
            totals: ``[E, 2]`` int32, zeros: what each exit step leaves.
            eager: whether the host waits for each count before it goes on.
        """
        one_a_row = None
        if self._one_query and last == self._stack.num_layers:
            one_a_row = torch.arange(len(batch.cu_seqlens), device=tickets.device).int()
        survivors = torch.ops.consistentee.device_engine_advance.default(
            self._number,
            first,
            last,
            **batch._asdict(),
            max_length=max_length,
            criterion=CRITERION_CODES[exits.criterion],
            thresholds=exits.thresholds(len(results.logits)),
            first_lengths=firsts,
            **results._asdict(),
            tickets=tickets,
            totals=totals,
            one_a_row=one_a_row,
            eager=eager,
        )
        return PackedBatch(*survivors)


def declines(stack: Stack, exits: Exits) -> str | None:
    """Why a model's layers are launched from Python; None where they need not be."""
    for block in stack.blocks:
        if block.norm_first or block.convolution is not None:
            return "as its blocks are not BERT's"
        if block.attention.form != PLAIN or block.mlp.gate is not None:
            return "as its attention or MLP is not BERT's"
        if any(linear.activation not in _ACTIVATIONS for linear in block.linears):
            return "as torch has no kernel of its activation"
        if any(linear.scale is not None for linear in block.linears):
            return "as its weights are integers"
        norms = (block.attention_norm, block.mlp_norm)
        if any(norm is None or norm.bias is None for norm in norms):
            return "as its norms are no layer norms"
    if not all(exit_.is_plain for exit_ in exits.by_layer.values()):
        return "as its exits are more than a pooling and a product"
    return why_no_flash(stack.device, stack.dtype, stack.blocks[0].attention.head_size)


def _number_of(stack: Stack, exits: Exits, costs: RemovalCosts) -> int:
    ops = torch.ops.consistentee
    number: int = ops.device_engine_create.default(
        flash_arguments=flash_arguments(),
        cost_tokens=costs.tokens,
        layer_costs=costs.layer,
        removal_costs=costs.removal,
    )
    for block in stack.blocks:
        ops.device_engine_add_block.default(number, **_block_arguments(block))
    for layer, exit_ in exits.by_layer.items():
        ops.device_engine_add_exit.default(number, layer=layer, **_exit_arguments(exit_))
    return number


def _block_arguments(block: Block) -> dict[str, Any]:
    attention, mlp = block.attention, block.mlp
    return {
        **linear_arguments("query", attention.query),
        **linear_arguments("key_value", attention.key_value),
        **linear_arguments("attention_out", attention.out),
        "num_heads": attention.num_heads,
        "head_size": attention.head_size,
        **norm_arguments("attention_norm", block.attention_norm),
        **linear_arguments("up", mlp.up),
        "up_activation": mlp.up.activation or "none",
        **linear_arguments("down", mlp.down),
        **norm_arguments("mlp_norm", block.mlp_norm),
    }


def _exit_arguments(exit_: Exit) -> dict[str, Any]:
    return {
        "pooling": exit_.pooling,
        **linear_arguments("pooler", exit_.pooler),
        **head_arguments(exit_.weights),
    }
