"""The engine of the CPU: a pass is one call into C++."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from typing_extensions import override

from consistentee_ext.engines.base import Engine
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Block, Stack
from consistentee_ext.ops.schema import CRITERION_CODES, head_arguments
from consistentee_ext.packed import ExitResults, PackedBatch
from consistentee_ext.weights import PLAIN, LinearWeights, NormWeights


class NativeEngine(Engine):
    """Blocks and exits laid out once in C++; it computes what `EagerEngine` does op by op."""

    def __init__(self, stack: Stack, exits: Exits, number: _Number | None = None) -> None:
        super().__init__(stack, exits)
        self._number = number or _Number(stack, exits)

    @staticmethod
    def takes(stack: Stack, exits: Exits) -> bool:
        """Whether C++ has all that the model is made of."""
        plain = stack.embedding.is_plain and all(map(_is_plain, stack.blocks))
        if not plain or not all(exit_.is_plain for exit_ in exits.by_layer.values()):
            return False
        linears = [linear for block in stack.blocks for linear in block.linears]
        linears += [exit_.pooler for exit_ in exits.by_layer.values() if exit_.pooler is not None]
        return all(
            linear.prepacked
            and linear.bias is not None
            and linear.activation in (None, "gelu", "relu")
            for linear in linears
        )

    @override
    def with_exits(self, exits: Exits) -> NativeEngine:
        same_weights = exits.by_layer is self.exits.by_layer
        return NativeEngine(self.stack, exits, self._number if same_weights else None)

    @override
    def advance(
        self, batch: PackedInputs | PackedBatch, first: int, last: int, results: ExitResults
    ) -> PackedBatch:
        survivors = torch.ops.consistentee.engine_advance.default(
            self._number.value,
            first,
            last,
            **{"ids": None, "types": None, "positions": None, "hidden": None} | batch._asdict(),
            criterion=CRITERION_CODES[self.exits.criterion],
            thresholds=self.exits.thresholds(len(results.logits)),
            **results._asdict(),
        )
        return PackedBatch(*survivors)


class _Number:
    """The number of an engine in C++, which lives as long as this object."""

    def __init__(self, stack: Stack, exits: Exits) -> None:
        ops, embedding = torch.ops.consistentee, stack.embedding
        self.value: int = ops.engine_create.default(
            word_table=embedding.words,
            type_table=embedding.types,
            position_table=embedding.positions,
            **embedding.norm._asdict(),
        )
        weakref.finalize(self, ops.engine_free.default, self.value)
        for block in stack.blocks:
            ops.engine_add_block.default(self.value, **_block_arguments(block))
        for layer, exit_ in exits.by_layer.items():
            ops.engine_add_exit.default(
                self.value,
                layer=layer,
                pooling=exit_.pooling,
                **_linear_arguments("pooler", exit_.pooler),
                **head_arguments(exit_.weights),
            )


def _is_plain(block: Block) -> bool:
    norms = (block.attention_norm, block.mlp_norm)
    layer_norms = all(norm is not None and norm.bias is not None for norm in norms)
    outer = block.attention_out_norm is None and block.mlp_out_norm is None
    attention = block.attention
    size = attention.head_size * attention.num_heads
    square = size == attention.out.weight.shape[0]
    return layer_norms and outer and square and attention.form == PLAIN and block.mlp.gate is None


def _block_arguments(block: Block) -> dict[str, Any]:
    attention, mlp = block.attention, block.mlp
    return {
        **_linear_arguments("query", attention.query),
        **_linear_arguments("key_value", attention.key_value),
        **_linear_arguments("attention_out", attention.out),
        "num_heads": attention.num_heads,
        **_norm_arguments("attention_norm", block.attention_norm),
        **_linear_arguments("up", mlp.up),
        "activation": mlp.up.activation or "none",
        **_linear_arguments("down", mlp.down),
        **_norm_arguments("mlp_norm", block.mlp_norm),
        "norm_first": block.norm_first,
    }


def _linear_arguments(name: str, linear: LinearWeights | None) -> dict[str, Any]:
    weight, bias = (None, None) if linear is None else (linear.weight, linear.bias)
    return {name: weight, f"{name}_bias": bias}


def _norm_arguments(name: str, norm: NormWeights) -> dict[str, Any]:
    return {f"{name}_{field}": value for field, value in norm._asdict().items()}
