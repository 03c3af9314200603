"""One layer: attention and MLP, each added to its input and normalised."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from consistentee_ext.layers.attention import Attention
from consistentee_ext.layers.mlp import Mlp
from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import PackedBatch
from consistentee_ext.weights import LinearWeights, NormWeights


@dataclass(frozen=True)
class Block:
    """``x = attention_norm(x + attention(x))``, then ``x = mlp_norm(x + mlp(x))``."""

    attention: Attention
    attention_norm: NormWeights
    mlp: Mlp
    mlp_norm: NormWeights

    @property
    def linears(self) -> list[LinearWeights]:
        """Every product of the block."""
        attention, mlp = self.attention, self.mlp
        own = [attention.query, attention.key_value, attention.out, mlp.up, mlp.down]
        return [linear for linear in own if linear is not None]

    def __call__(
        self, batch: PackedBatch, ops: LayerOps, max_length: int | None = None
    ) -> PackedBatch:
        """The batch behind the block: all tokens, or the first of each row.

        On a device, `max_length` bounds the rows' lengths.
        """
        out, added = self.before_last_norm(batch, ops, max_length)
        return out._replace(hidden=ops.add_norm(added, out.hidden, *self.mlp_norm))

    def before_last_norm(
        self, batch: PackedBatch, ops: LayerOps, max_length: int | None = None
    ) -> tuple[PackedBatch, Tensor]:
        """The last norm's operands: the residual, and what the MLP adds to it ``[T, H]``."""
        out, added = self.attention(batch, ops, max_length)
        hidden = ops.add_norm(added, out.hidden, *self.attention_norm)
        return out._replace(hidden=hidden), self.mlp(hidden, ops)
