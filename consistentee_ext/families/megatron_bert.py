"""Megatron-BERT: BERT with norms before attention and MLP, and one behind the last layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from consistentee_ext.families.bert import read_head, read_mlp
from consistentee_ext.families.reader import Reader
from consistentee_ext.layers import Block, Stack

__all__ = ["LAST_NORM", "read_head", "read_prenorm_block", "read_stack"]

LAST_NORM: str | None = "encoder.ln"


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `MegatronBertModel`."""
    embeddings = model.embeddings
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        None,
    )

    def read_block(reader: Reader, layer: Any) -> Block:
        return read_prenorm_block(reader, layer, layer.attention.ln, layer.ln)

    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))


def read_prenorm_block(
    reader: Reader, layer: Any, attention_norm: nn.LayerNorm, mlp_norm: nn.LayerNorm
) -> Block:
    """A layer with BERT's products whose norms come first."""
    attention = layer.attention.self
    return Block(
        attention=reader.attention(
            attention.query,
            attention.key,
            attention.value,
            layer.attention.output.dense,
            reader.config.num_attention_heads,
        ),
        attention_norm=reader.norm(attention_norm),
        mlp=read_mlp(reader, layer),
        mlp_norm=reader.norm(mlp_norm),
        norm_first=True,
    )
