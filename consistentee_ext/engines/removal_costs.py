"""What a layer takes, and what removing rows from a batch does: where removal pays."""

from __future__ import annotations

from typing import NamedTuple

from consistentee_ext.layers import Stack

# us of a layer of BERT-base by tokens, in bfloat16 on an H200 (docs/gpu.md, row 6 of the check).
# Below some 1,000 tokens a layer takes as long for half of them, so that removing rows gains
# nothing until no row is left. Of other cards the figures differ, the shape does not.
_LAYER = {
    0: 0.0, 1: 45.0, 256: 47.0, 512: 51.0, 1024: 62.0, 2048: 88.0, 4096: 151.0, 8192: 281.0,
    16384: 559.0, 32768: 1099.0, 65536: 2193.0,
}  # fmt: skip
_LAYER_WEIGHTS = 7_077_888  # of its products
# The copy of the tokens that stay: a launch at least, else what its bytes take.
_LEAST_COPY = 3.0
_BYTES_A_MICROSECOND = 4.19e6


class RemovalCosts(NamedTuple):
    """Microseconds by numbers of tokens, which ascend from 0.

    Attributes:
        tokens: numbers of tokens.
        layer: of a layer on so many.
        removal: of removing rows from a batch of so many.
    """

    tokens: list[float]
    layer: list[float]
    removal: list[float]

    @classmethod
    def measured(cls, stack: Stack) -> RemovalCosts:
        """For layers of this size: as many products a token take as long."""
        weights = sum(linear.weight.numel() for linear in stack.blocks[0].linears)
        tokens = [count * _LAYER_WEIGHTS / weights for count in _LAYER]
        token_bytes = 2 * stack.hidden_size * stack.embedding.words.element_size()
        copies = [max(_LEAST_COPY, count * token_bytes / _BYTES_A_MICROSECOND) for count in tokens]
        return cls(tokens, list(_LAYER.values()), copies)
