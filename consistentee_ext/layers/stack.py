"""A model without its exits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from consistentee_ext.layers.block import Block
from consistentee_ext.layers.embedding import Embedding
from consistentee_ext.packed import InputLimits


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
    def device(self) -> torch.device:
        """Where it runs."""
        return self.embedding.words.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its hidden states."""
        return self.embedding.words.dtype

    @property
    def limits(self) -> InputLimits:
        """Which inputs it takes."""
        return self.embedding.limits

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.blocks[0].mlp.down.shape[0]
