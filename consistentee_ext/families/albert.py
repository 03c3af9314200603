"""ALBERT: a narrow embedding, layers that share their weights by groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from consistentee_ext.families.reader import ClassifierHead, Reader, expect
from consistentee_ext.layers import Block, Mlp, Stack

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """An `AlbertModel`."""
    embeddings, encoder, config = model.embeddings, model.encoder, reader.config
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
        product=reader.linear(encoder.embedding_hidden_mapping_in),
    )
    share = config.num_hidden_layers / config.num_hidden_groups
    layers = [
        layer
        for number in range(config.num_hidden_layers)
        for layer in encoder.albert_layer_groups[int(number / share)].albert_layers
    ]
    return Stack(embedding, reader.blocks(layers, _read_block))


def _read_block(reader: Reader, layer: Any) -> Block:
    attention, config = layer.attention, reader.config
    return Block(
        attention=reader.attention(
            attention.query,
            attention.key,
            attention.value,
            attention.dense,
            config.num_attention_heads,
        ),
        attention_norm=reader.norm(attention.LayerNorm),
        mlp=Mlp(
            up=reader.linear(layer.ffn, activation=config.hidden_act),
            down=reader.linear(layer.ffn_output),
        ),
        mlp_norm=reader.norm(layer.full_layer_layer_norm),
    )


def read_head(model: Any) -> ClassifierHead:
    """The head of an `AlbertForSequenceClassification`."""
    backbone = model.base_model
    expect(backbone.pooler_activation, nn.Tanh, "the pooler's activation")
    return ClassifierHead(model.classifier, backbone.pooler, "tanh")
