"""The two products behind attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from consistentee_ext.ops import LayerOps
from consistentee_ext.weights import LinearWeights


@dataclass(frozen=True)
class Mlp:
    """``down(up(x))``; the activation is that of `up`."""

    up: LinearWeights
    down: LinearWeights

    def __call__(self, hidden: Tensor, ops: LayerOps) -> Tensor:
        """``[T, H]`` to ``[T, H]``."""
        return ops.linear(ops.linear(hidden, self.up), self.down)
