"""RoFormer: BERT's layers with rotary positions, which turn neighbouring numbers of a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext.families.bert import block_around
from consistentee_ext.families.reader import ClassifierHead, Reader, expect
from consistentee_ext.layers import Block, Stack
from consistentee_ext.weights import AttentionForm, Rotation

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `RoFormerModel`.

    Raises:
        ValueError: it turns the values as well.
    """
    embeddings, config = model.embeddings, reader.config
    if config.rotary_value:
        raise ValueError("model: expected rotary_value=False, got a RoFormer that turns its values")
    project = getattr(model, "embeddings_project", None)
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        None,
        embeddings.LayerNorm,
        by_place=True,
        product=None if project is None else reader.linear(project),
    )
    sin, cos = reader.exact(model.encoder.embed_positions.weight).chunk(2, dim=-1)
    form = AttentionForm(rotation=Rotation(cos.contiguous(), sin.contiguous()))

    def read_block(reader: Reader, layer: Any) -> Block:
        attention, heads = layer.attention.self, config.num_attention_heads
        query, key = (_halves_apart(part, heads) for part in (attention.query, attention.key))
        value = expect(attention.value, nn.Linear, "every product of a layer")
        products = reader.fused_attention(
            (query, key, (value.weight, value.bias)),
            layer.attention.output.dense,
            heads,
            form,
        )
        return block_around(products, reader, layer)

    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))


def _halves_apart(linear: Any, num_heads: int) -> tuple[Tensor, Tensor]:
    """Weight and bias with the even numbers of each head before the odd ones: a turn of neighbours
    is then one of halves.
    """
    expect(linear, nn.Linear, "every product of a layer")
    rows = torch.arange(len(linear.weight), device=linear.weight.device)
    order = rows.view(num_heads, -1, 2).transpose(1, 2).flatten()
    return linear.weight[order], linear.bias[order]


def read_head(model: Any) -> ClassifierHead:
    """The head of a `RoFormerForSequenceClassification`."""
    head = model.classifier
    return ClassifierHead(head.out_proj, head.dense, model.config.hidden_act)
