"""DistilBERT: BERT's layers under other names, no segments, a head with ReLU."""

from __future__ import annotations

from typing import Any

from consistentee_ext.families.reader import ClassifierHead, Reader
from consistentee_ext.layers import Block, Mlp, Stack

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `DistilBertModel`."""
    embeddings = model.embeddings
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        None,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
    )
    return Stack(embedding, reader.blocks(model.transformer.layer, _read_block))


def _read_block(reader: Reader, layer: Any) -> Block:
    attention = layer.attention
    return Block(
        attention=reader.attention(
            attention.q_lin,
            attention.k_lin,
            attention.v_lin,
            attention.out_lin,
            reader.config.n_heads,
        ),
        attention_norm=reader.norm(layer.sa_layer_norm),
        mlp=Mlp(
            up=reader.linear(layer.ffn.lin1, activation=reader.config.activation),
            down=reader.linear(layer.ffn.lin2),
        ),
        mlp_norm=reader.norm(layer.output_layer_norm),
    )


def read_head(model: Any) -> ClassifierHead:
    """The head of a `DistilBertForSequenceClassification`."""
    return ClassifierHead(model.classifier, model.pre_classifier, "relu")
