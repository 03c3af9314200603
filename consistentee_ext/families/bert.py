"""BERT, and what shares its modules: MiniLM, bge, e5, gte-base."""

from __future__ import annotations

from typing import Any

from torch import nn

from consistentee_ext.families.reader import ClassifierHead, Reader, expect
from consistentee_ext.layers import Attention, Block, Mlp, Stack

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `BertModel`."""
    embeddings = model.embeddings
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
    )
    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))


def read_block(reader: Reader, layer: Any) -> Block:
    """A `BertLayer`, or a layer with the same modules."""
    attention = layer.attention.self
    products = reader.attention(
        attention.query,
        attention.key,
        attention.value,
        layer.attention.output.dense,
        reader.config.num_attention_heads,
    )
    return block_around(products, reader, layer)


def block_around(attention: Attention, reader: Reader, layer: Any) -> Block:
    """`attention` with the norms and the MLP of a layer that has BERT's modules around it."""
    return Block(
        attention=attention,
        attention_norm=reader.norm(layer.attention.output.LayerNorm),
        mlp=read_mlp(reader, layer),
        mlp_norm=reader.norm(layer.output.LayerNorm),
    )


def read_mlp(reader: Reader, layer: Any) -> Mlp:
    """The MLP of a layer that has BERT's modules for it."""
    return Mlp(
        up=reader.linear(layer.intermediate.dense, activation=reader.config.hidden_act),
        down=reader.linear(layer.output.dense),
    )


def read_head(model: Any) -> ClassifierHead:
    """The head of a `BertForSequenceClassification`."""
    pooler = model.base_model.pooler
    expect(pooler.activation, nn.Tanh, "the pooler's activation")
    return ClassifierHead(model.classifier, pooler.dense, "tanh")
