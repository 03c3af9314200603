"""One layer of a decoder on packed tokens, with keys and values in a cache.

Letters: R sequences, T packed tokens, Q of them that go on, H hidden size, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from consistentee_ext.generation.cache import SlotCache, spans
from consistentee_ext.layers import Stack
from consistentee_ext.ops import LayerOps
from consistentee_ext.ops.attention_form import rotate
from consistentee_ext.ops.norm import norm
from consistentee_ext.weights import AttentionForm, NormWeights


@dataclass(frozen=True)
class Tokens:
    """Which tokens run some layers: all T get keys and values, Q of them go on.

    Attributes:
        rows: ``[T]`` int64, of the cache: where their keys and values are written.
        positions: ``[T]`` int64.
        goes_on: the Q tokens, a slice or their numbers ``[Q]`` int64.
        query_offsets: ``[R+1]`` int32, of the Q tokens.
        key_offsets: ``[R+1]`` int32, where the T tokens are all that attention sees: prompts. None
            where it reads the cache.
        slots: ``[R]`` int64.
        behind: ``[R]`` int64, how many tokens of each sequence attention sees.
    """

    rows: Tensor
    positions: Tensor
    goes_on: slice | Tensor
    query_offsets: Tensor
    key_offsets: Tensor | None
    slots: Tensor
    behind: Tensor
    # By window: rows of the cache and offsets [R+1], as all layers of one window read the same.
    _seen: dict[int | None, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of_prompts(cls, cache: SlotCache, slots: Tensor, cu_seqlens: Tensor) -> Tokens:
        """Whole prompts, in slots that have nothing before them."""
        lengths = cache.lengths[slots]
        bases = slots * cache.num_positions
        rows, positions = spans(bases, torch.zeros_like(lengths), lengths)
        return cls(rows, positions, slice(None), cu_seqlens, cu_seqlens, slots, lengths)

    def last(self) -> Tokens:
        """The same prompts, of which the last tokens alone go on."""
        last = self.query_offsets[1:].long() - 1
        return replace(self, goes_on=last, query_offsets=_one_each(self.slots))

    @classmethod
    def of_step(cls, cache: SlotCache, segment: int, slots: Tensor, positions: Tensor) -> Tokens:
        """One token of each sequence, at ``positions [R]``, which goes on; and behind them those
        before it that lack keys and values in a segment.
        """
        rows, before = cache.pending(segment, slots, positions)
        present = slots * cache.num_positions + positions
        return cls(
            torch.cat([present, rows]),
            torch.cat([positions, before]),
            slice(len(slots)),
            _one_each(slots),
            None,
            slots,
            positions + 1,
        )

    @property
    def present(self) -> Tensor:
        """``[R]`` int64, rows of the tokens of a step."""
        return self.rows[: len(self.slots)]

    @property
    def pending(self) -> Tensor:
        """``[T - R]`` int64, rows of the tokens of earlier steps."""
        return self.rows[len(self.slots) :]

    def seen(self, cache: SlotCache, window: int | None) -> tuple[Tensor, Tensor]:
        """The rows of the cache that attention reads ``[S]`` int64, and their offsets ``[R+1]``
        int32; with a window, the last so many tokens of each sequence.
        """
        if window not in self._seen:
            first = torch.zeros_like(self.behind)
            if window is not None:
                first = (self.behind - window).clamp(min=0)
            rows, _ = spans(self.slots * cache.num_positions, first, self.behind)
            offsets = torch.nn.functional.pad((self.behind - first).cumsum(0), (1, 0)).int()
            self._seen[window] = rows, offsets
        return self._seen[window]


def run_layer(
    stack: Stack, layer: int, hidden: Tensor, tokens: Tokens, cache: SlotCache, ops: LayerOps
) -> Tensor:
    """Hidden states ``[Q, H]`` behind a layer of those tokens that go on.

    Args:
        stack: blocks that norm first.
        layer: in 1..L.
        hidden: ``[T, H]``, what the layer reads of all.
        tokens: which they are.
        cache: their keys and values are written to it.
        ops: of the backend.
    """
    block = stack.blocks[layer - 1]
    attention, form = block.attention, block.attention.form
    product = ops.linear(block.before_attention(hidden), attention.query)
    sizes = [attention.num_heads, *[form.num_kv_heads or attention.num_heads] * 2]
    query, key, value = (
        part.unflatten(-1, (-1, attention.head_size))
        for part in product.split([n * attention.head_size for n in sizes], dim=-1)
    )
    query = _placed(query[tokens.goes_on], tokens.positions[tokens.goes_on], form.query_norm, form)
    key, value = _placed(key, tokens.positions, form.key_norm, form), value.flatten(1)
    keys, values = cache.keys[layer - 1], cache.values[layer - 1]
    keys[tokens.rows], values[tokens.rows] = key, value
    offsets = tokens.key_offsets
    if offsets is None:
        rows, offsets = tokens.seen(cache, None if form.high is None else form.high + 1)
        key, value = keys[rows], values[rows]
    # Norms and rotation are done; what is left is which keys a query sees.
    seen = AttentionForm(form.num_kv_heads, form.scale, form.low, form.high, last_queries=True)
    context = ops.attention(
        query, key, value, tokens.query_offsets, offsets, attention.num_heads, form=seen
    )
    added = ops.linear(context, attention.out)
    return block.behind_attention(hidden[tokens.goes_on], added, ops)


def _placed(
    heads: Tensor, positions: Tensor, weights: NormWeights | None, form: AttentionForm
) -> Tensor:
    """``[T, heads, d]``, normed and rotated as the form says: ``[T, heads * d]``."""
    if weights is not None:
        heads = norm(heads, *weights)
    if form.rotation is not None:
        heads = rotate(heads.transpose(0, 1), positions, form.rotation).transpose(0, 1)
    return heads.flatten(1)


def _one_each(slots: Tensor) -> Tensor:
    return torch.arange(len(slots) + 1, dtype=torch.int32, device=slots.device)
