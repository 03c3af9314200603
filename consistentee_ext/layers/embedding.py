"""Token ids to hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from consistentee_ext.ops import LayerOps
from consistentee_ext.ops.norm import norm
from consistentee_ext.packed import InputLimits
from consistentee_ext.weights import LinearWeights, NormWeights


@dataclass(frozen=True)
class Embedding:
    """``norm(words[id] + types[type] + positions[position])``, with a product behind the norm, or
    before it.

    Attributes:
        words: ``[V, E]``; E is H where there is no product.
        types: ``[entries, E]``; None in a model without segments.
        positions: ``[entries, E]``; None in a model whose attention knows of places.
        norm: of the sum; None for none.
        limits: which inputs the model takes.
        product: from E to H; None for none.
        product_first: whether it comes before the norm.
    """

    words: Tensor
    types: Tensor | None
    positions: Tensor | None
    norm: NormWeights | None
    limits: InputLimits
    product: LinearWeights | None = None
    product_first: bool = False

    def __call__(self, ids: Tensor, types: Tensor, positions: Tensor, ops: LayerOps) -> Tensor:
        """``[T, H]`` of tokens, from ids, segment ids and positions ``[T]`` int64."""
        if self.is_plain:
            tables: Any = (self.words, self.types, self.positions, *(self.norm or ()))
            out: Tensor = ops.embed(ids, types, positions, *tables)
            return out
        hidden = self.words[ids]
        if self.types is not None:
            hidden = hidden + self.types[types]
        if self.positions is not None:
            hidden = hidden + self.positions[positions]
        if self.product is not None and self.product_first:
            hidden = ops.linear(hidden, self.product)
        if self.norm is not None:
            hidden = norm(hidden, *self.norm)
        if self.product is not None and not self.product_first:
            hidden = ops.linear(hidden, self.product)
        return hidden

    @property
    def is_plain(self) -> bool:
        """Whether it is BERT's: three tables, a layer norm, no product."""
        has_tables = self.types is not None and self.positions is not None
        layer_norm = self.norm is not None and self.norm.bias is not None
        return has_tables and layer_norm and self.product is None
