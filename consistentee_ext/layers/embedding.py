"""Token ids to hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import InputLimits
from consistentee_ext.weights import NormWeights


@dataclass(frozen=True)
class Embedding:
    """``norm(words[id] + types[type] + positions[position])``.

    Attributes:
        words: ``[V, H]``.
        types: ``[entries, H]``; one row of zeros in a model without segments.
        positions: ``[entries, H]``.
        norm: of the sum.
        padding_id: see `InputLimits`.
    """

    words: Tensor
    types: Tensor
    positions: Tensor
    norm: NormWeights
    padding_id: int | None = None

    @property
    def limits(self) -> InputLimits:
        """Which inputs the tables have rows for."""
        return InputLimits(len(self.words), len(self.types), len(self.positions), self.padding_id)

    def __call__(self, ids: Tensor, types: Tensor, positions: Tensor, ops: LayerOps) -> Tensor:
        """``[T, H]`` of tokens, from ids, segment ids and positions ``[T]`` int64."""
        tables = (self.words, self.types, self.positions)
        return ops.embed(ids, types, positions, *tables, *self.norm)
