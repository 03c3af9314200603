"""DeBERTa, the first one: as the second, without buckets, queries, keys and values by heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from consistentee_ext.families.bert import block_around
from consistentee_ext.families.deberta_v2 import LAST_NORM, read_embedding, read_head
from consistentee_ext.families.reader import Reader
from consistentee_ext.layers import Block, Stack
from consistentee_ext.weights import BUCKETS, AttentionForm, RelativeTerms

__all__ = ["LAST_NORM", "read_head", "read_stack"]


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `DebertaModel`.

    Raises:
        ValueError: its heads talk to one another.
    """
    encoder, config = model.encoder, reader.config
    if getattr(config, "talking_head", False):
        raise ValueError("model: expected talking_head=False, got a DeBERTa whose heads are mixed")
    table = encoder.get_rel_embedding()

    def read_block(reader: Reader, layer: Any) -> Block:
        attention = layer.attention.self
        products = reader.fused_attention(
            _by_heads(attention),
            layer.attention.output.dense,
            config.num_attention_heads,
            _form(reader, attention, table),
        )
        return block_around(products, reader, layer)

    embedding = read_embedding(model.embeddings, reader)
    return Stack(embedding, reader.blocks(encoder.layer, read_block))


def _by_heads(attention: Any) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """Weight and bias of queries, keys and values, which lie side by side head after head."""
    heads = attention.in_proj.weight.unflatten(0, (attention.num_attention_heads, 3, -1))
    query, key, value = (heads[:, part].flatten(0, 1) for part in range(3))
    return (query, attention.q_bias), (key, None), (value, attention.v_bias)


@torch.no_grad()
def _form(reader: Reader, attention: Any, table: Tensor | None) -> AttentionForm:
    kinds = attention.pos_att_type
    scale = (attention.attention_head_size * (1 + len(kinds))) ** -0.5
    if table is None:
        return AttentionForm(scale=scale)
    span, longest = attention.max_relative_positions, reader.config.max_position_embeddings
    used, heads = pad(table, (0, 0, 0, -2 * span % BUCKETS)), attention.num_attention_heads
    keys = queries = None
    if "c2p" in kinds:
        keys = reader.exact(attention.pos_proj(used).unflatten(-1, (heads, -1)).permute(1, 0, 2))
    if "p2c" in kinds:
        terms = attention.pos_q_proj(used).unflatten(-1, (heads, -1))
        queries = reader.exact(terms.permute(1, 2, 0))
    distance = torch.arange(1 - longest, longest, device=reader.device)
    buckets = (distance + span).clamp(0, 2 * span - 1).int()
    return AttentionForm(scale=scale, relative=RelativeTerms(keys, queries, buckets))
