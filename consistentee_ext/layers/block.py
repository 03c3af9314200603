"""One layer: attention and MLP, each added to its input, and the norms around them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from consistentee_ext.layers.attention import Attention
from consistentee_ext.layers.convolution import Convolution
from consistentee_ext.layers.mlp import Mlp
from consistentee_ext.ops import LayerOps
from consistentee_ext.ops.norm import norm
from consistentee_ext.packed import PackedBatch
from consistentee_ext.weights import LinearWeights, NormWeights


@dataclass(frozen=True)
class Block:
    """``x = attention_norm(x + attention(x))``, then ``x = mlp_norm(x + mlp(x))``.

    With `norm_first`: ``x = x + attention(attention_norm(x))``, then ``x = x + mlp(mlp_norm(x))``;
    there `attention_norm` may be None, for none, and what is added may have a norm of its own,
    `attention_out_norm` and `mlp_out_norm`. Without it a `convolution` may follow.
    """

    attention: Attention
    attention_norm: NormWeights | None
    mlp: Mlp
    mlp_norm: NormWeights
    norm_first: bool = False
    attention_out_norm: NormWeights | None = None
    mlp_out_norm: NormWeights | None = None
    convolution: Convolution | None = None

    @property
    def linears(self) -> list[LinearWeights]:
        """Every product of the block."""
        attention, mlp = self.attention, self.mlp
        own = [attention.query, attention.key_value, attention.out, mlp.up, mlp.down, mlp.gate]
        if self.convolution is not None:
            own.append(self.convolution.product)
        return [linear for linear in own if linear is not None]

    def __call__(
        self, batch: PackedBatch, ops: LayerOps, max_length: int | None = None
    ) -> PackedBatch:
        """The batch behind the block: all tokens, or one of each row.

        On a device, `max_length` bounds the rows' lengths.
        """
        if self.norm_first:
            return self._norm_first(batch, ops, max_length)
        out, added = self.before_last_norm(batch, ops, max_length)
        hidden = ops.add_norm(added, out.hidden, *self.mlp_norm)
        if self.convolution is not None:
            product = batch._replace(hidden=self.convolution.convolve(batch, ops))
            added = self.attention.queried(product).hidden
            hidden = ops.add_norm(added, hidden, *self.convolution.norm)
        return out._replace(hidden=hidden)

    def _norm_first(self, batch: PackedBatch, ops: LayerOps, max_length: int | None) -> PackedBatch:
        normed = batch._replace(hidden=self.before_attention(batch.hidden))
        out, added = self.attention(normed, ops, max_length)
        hidden = self.behind_attention(self.attention.queried(batch).hidden, added, ops)
        return out._replace(hidden=hidden)

    def before_attention(self, hidden: Tensor) -> Tensor:
        """What attention reads of ``[T, H]``, where the block norms first."""
        return _norm(hidden, self.attention_norm)

    def behind_attention(self, hidden: Tensor, added: Tensor, ops: LayerOps) -> Tensor:
        """``[T, H]`` behind a block that norms first, from what came in and what attention adds."""
        hidden = hidden + _norm(added, self.attention_out_norm)
        added = self.mlp(_norm(hidden, self.mlp_norm), ops)
        return hidden + _norm(added, self.mlp_out_norm)

    def before_last_norm(
        self, batch: PackedBatch, ops: LayerOps, max_length: int | None = None
    ) -> tuple[PackedBatch, Tensor]:
        """The operands of a last norm: the residual, and what the MLP adds to it ``[T, H]``."""
        assert self.attention_norm is not None
        out, added = self.attention(batch, ops, max_length)
        hidden = ops.add_norm(added, out.hidden, *self.attention_norm)
        return out._replace(hidden=hidden), self.mlp(hidden, ops)


def _norm(hidden: Tensor, weights: NormWeights | None) -> Tensor:
    return hidden if weights is None else norm(hidden, *weights)
