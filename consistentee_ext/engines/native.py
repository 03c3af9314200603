"""The engine of the CPU: a pass is one call into C++."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from consistentee_ext.engines.base import Engine
from consistentee_ext.exits.exit import Exit
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Block, Stack
from consistentee_ext.ops.schema import CRITERION_CODES, form_arguments, head_arguments
from consistentee_ext.packed import ExitResults, PackedBatch
from consistentee_ext.weights import LinearWeights, NormWeights


class NativeEngine(Engine):
    """Blocks and exits laid out once in C++; it computes what `EagerEngine` does op by op."""

    stack: Stack
    description = "one call into C++"

    def __init__(self, stack: Stack, exits: Exits, number: EngineNumber | None = None) -> None:
        super().__init__(stack, exits)
        self._number = number or _number_of(stack, exits)

    @staticmethod
    def takes(stack: Stack, exits: Exits) -> bool:
        """Whether no block has a convolution, and every product is prepacked for oneDNN: with an
        activation that it does not know none is.
        """
        if any(block.convolution is not None for block in stack.blocks):
            return False
        linears = [linear for block in stack.blocks for linear in block.linears]
        linears += [exit_.pooler for exit_ in exits.by_layer.values() if exit_.pooler is not None]
        linears += [stack.embedding.product] if stack.embedding.product is not None else []
        return all(linear.prepacked for linear in linears)

    @override
    def with_exits(self, exits: Exits) -> NativeEngine:
        same_weights = exits.by_layer is self.exits.by_layer
        return NativeEngine(self.stack, exits, self._number if same_weights else None)

    @override
    def advance(
        self,
        batch: PackedInputs | PackedBatch,
        first: int,
        last: int,
        results: ExitResults,
        firsts: Tensor | None = None,
    ) -> PackedBatch:
        if self.exits.separator_id is not None and isinstance(batch, PackedInputs):
            firsts = self.exits.first_lengths(batch)
        survivors = torch.ops.consistentee.engine_advance.default(
            self._number.value,
            first,
            last,
            **{"ids": None, "types": None, "positions": None, "hidden": None} | batch._asdict(),
            criterion=CRITERION_CODES[self.exits.criterion],
            thresholds=self.exits.thresholds(len(results.logits)),
            first_lengths=firsts,
            **results._asdict(),
        )
        return PackedBatch(*survivors)


class EngineNumber:
    """The number of an engine in C++ with the blocks of a stack, which lives as long as this
    object.
    """

    def __init__(self, stack: Stack) -> None:
        ops = torch.ops.consistentee
        self.value: int = ops.engine_create.default(**_embedding_arguments(stack))
        weakref.finalize(self, ops.engine_free.default, self.value)
        for block in stack.blocks:
            ops.engine_add_block.default(self.value, **_block_arguments(block))


def _number_of(stack: Stack, exits: Exits) -> EngineNumber:
    number = EngineNumber(stack)
    add = torch.ops.consistentee.engine_add_exit.default
    for layer, exit_ in exits.by_layer.items():
        add(number.value, layer=layer, **_exit_arguments(exit_))
    return number


def _embedding_arguments(stack: Stack) -> dict[str, Any]:
    embedding = stack.embedding
    return {
        "word_table": embedding.words,
        "type_table": embedding.types,
        "position_table": embedding.positions,
        **norm_arguments("norm", embedding.norm),
        **linear_arguments("product", embedding.product),
        "product_first": embedding.product_first,
        "hidden_size": stack.hidden_size,
    }


def _exit_arguments(exit_: Exit) -> dict[str, Any]:
    return {
        "pooling": exit_.pooling,
        **linear_arguments("pooler", exit_.pooler),
        "pooler_activation": _activation(exit_.pooler),
        "pools_states": exit_.pools_states,
        **norm_arguments("norm", exit_.norm),
        "norms_tokens": exit_.norms_tokens,
        **norm_arguments("state_norm", exit_.state_norm),
        **head_arguments(exit_.weights),
    }


def _block_arguments(block: Block) -> dict[str, Any]:
    attention, mlp = block.attention, block.mlp
    return {
        **_product_arguments("query", attention.query),
        **_product_arguments("key_value", attention.key_value),
        **_product_arguments("attention_out", attention.out),
        "num_heads": attention.num_heads,
        "head_size": attention.head_size,
        **norm_arguments("attention_norm", block.attention_norm),
        **_product_arguments("up", mlp.up),
        "up_activation": _activation(mlp.up),
        **_product_arguments("down", mlp.down),
        **_product_arguments("gate", mlp.gate),
        "gate_activation": _activation(mlp.gate),
        **norm_arguments("mlp_norm", block.mlp_norm),
        "norm_first": block.norm_first,
        **norm_arguments("attention_out_norm", block.attention_out_norm),
        **norm_arguments("mlp_out_norm", block.mlp_out_norm),
        **form_arguments(attention.form),
        "levels": max(linear.levels for linear in block.linears),
    }


def _activation(linear: LinearWeights | None) -> str:
    return "none" if linear is None else linear.activation or "none"


def linear_arguments(name: str, linear: LinearWeights | None) -> dict[str, Any]:
    """Its weights, without the activation."""
    weight, bias = (None, None) if linear is None else (linear.weight, linear.bias)
    return {name: weight, f"{name}_bias": bias}


def _product_arguments(name: str, linear: LinearWeights | None) -> dict[str, Any]:
    scale = None if linear is None else linear.scale
    return {**linear_arguments(name, linear), f"{name}_scale": scale}


def norm_arguments(name: str, norm: NormWeights | None) -> dict[str, Any]:
    """All of it."""
    weight, bias, eps = norm or (None, None, 0.0)
    return {f"{name}_weight": weight, f"{name}_bias": bias, f"{name}_eps": eps}
