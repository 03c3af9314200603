"""MPNet: BERT's layers, positions counted by ids, and a bias of the scores by distance."""

from __future__ import annotations

from typing import Any

import torch

from consistentee_ext.families.bert import read_mlp
from consistentee_ext.families.reader import ClassifierHead, Reader
from consistentee_ext.layers import Block, Stack
from consistentee_ext.weights import AttentionForm

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """An `MPNetModel`."""
    embeddings, encoder, config = model.embeddings, model.encoder, reader.config
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        None,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
        padding_id=embeddings.padding_idx,
        by_place=True,
    )
    longest = embedding.limits.max_length
    distance = torch.arange(1 - longest, longest, device=embedding.words.device)
    # The model's own function, of key less query.
    buckets = encoder.relative_position_bucket(-distance, num_buckets=32)
    bias = reader.exact(encoder.relative_attention_bias.weight)[buckets].T.contiguous()
    form = AttentionForm(bias=bias)

    def read_block(reader: Reader, layer: Any) -> Block:
        attention = layer.attention.attn
        heads = config.num_attention_heads
        return Block(
            attention=reader.attention(
                attention.q, attention.k, attention.v, attention.o, heads, form
            ),
            attention_norm=reader.norm(layer.attention.LayerNorm),
            mlp=read_mlp(reader, layer),
            mlp_norm=reader.norm(layer.output.LayerNorm),
        )

    return Stack(embedding, reader.blocks(encoder.layer, read_block))


def read_head(model: Any) -> ClassifierHead:
    """The head of an `MPNetForSequenceClassification`."""
    return ClassifierHead(model.classifier.out_proj, model.classifier.dense, "tanh")
