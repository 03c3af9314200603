"""The products behind attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from consistentee_ext.ops import LayerOps
from consistentee_ext.weights import LinearWeights


@dataclass(frozen=True)
class Mlp:
    """``down(up(x))``, or ``down(gate(x) * up(x))`` where there is a gate.

    The activation is that of `up`, or of `gate`.
    """

    up: LinearWeights
    down: LinearWeights
    gate: LinearWeights | None = None

    def __call__(self, hidden: Tensor, ops: LayerOps) -> Tensor:
        """``[T, H]`` to ``[T, H]``."""
        inner = ops.linear(hidden, self.up)
        if self.gate is not None:
            inner = ops.linear(hidden, self.gate) * inner
        return ops.linear(inner, self.down)
