"""A model without its exits."""

from __future__ import annotations

from dataclasses import dataclass

from consistentee_ext.layers.block import Block
from consistentee_ext.layers.embedding import Embedding


@dataclass(frozen=True)
class Stack:
    """An embedding and L blocks, one behind the other."""

    embedding: Embedding
    blocks: tuple[Block, ...]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """H."""
        size: int = self.blocks[0].mlp.down.weight.shape[0]
        return size
