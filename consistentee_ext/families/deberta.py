"""DeBERTa, the first one: as the second, without buckets, queries, keys and values by heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from consistentee_ext.families.bert import block_around
from consistentee_ext.families.deberta_v2 import (
    LAST_NORM,
    read_embedding,
    read_head,
    relative_terms,
)
from consistentee_ext.families.reader import Reader
from consistentee_ext.layers import Block, Stack
from consistentee_ext.weights import AttentionForm

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


def _form(reader: Reader, attention: Any, table: Tensor | None) -> AttentionForm:
    kinds = attention.pos_att_type
    scale = (attention.attention_head_size * (1 + len(kinds))) ** -0.5
    if table is None:
        return AttentionForm(scale=scale)
    keys = attention.pos_proj if "c2p" in kinds else None
    queries = attention.pos_q_proj if "p2c" in kinds else None
    span, longest = attention.max_relative_positions, reader.config.max_position_embeddings
    distance = torch.arange(1 - longest, longest)
    terms = relative_terms(reader, table, keys, queries, span, distance)
    return AttentionForm(scale=scale, relative=terms)
