"""ModernBERT: norms first, rotary positions, local attention in most layers, gated MLPs."""

from __future__ import annotations

from typing import Any

from torch import nn

from consistentee_ext.families.reader import ClassifierHead, Reader
from consistentee_ext.layers import Block, Mlp, Stack
from consistentee_ext.weights import AttentionForm

LAST_NORM: str | None = "final_norm"


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `ModernBertModel`."""
    embeddings, config = model.embeddings, reader.config
    words = reader.normed_words(embeddings.tok_embeddings.weight, embeddings.norm)
    embedding = reader.embedding(words, None, None, None, by_place=True)
    rotations = {
        kind: reader.rotation(model.rotary_emb, f"{kind}_") for kind in set(config.layer_types)
    }

    def read_block(reader: Reader, layer: Any) -> Block:
        attention, mlp, kind = layer.attn, layer.mlp, layer.attention_type
        # Both sides of a query; the module counts one more.
        reach = config.sliding_window if kind == "sliding_attention" else None
        form = AttentionForm(
            low=None if reach is None else -reach, high=reach, rotation=rotations[kind]
        )
        first = isinstance(layer.attn_norm, nn.Identity)
        (gate, gate_bias), (up, up_bias) = _halves(mlp.Wi, 2)
        return Block(
            attention=reader.fused_attention(
                _halves(attention.Wqkv, 3), attention.Wo, config.num_attention_heads, form
            ),
            attention_norm=None if first else reader.norm(layer.attn_norm),
            mlp=Mlp(
                up=reader.product((up, up_bias)),
                down=reader.linear(mlp.Wo),
                gate=reader.product((gate, gate_bias), activation=config.hidden_activation),
            ),
            mlp_norm=reader.norm(layer.mlp_norm),
            norm_first=True,
        )

    return Stack(embedding, reader.blocks(model.layers, read_block))


def _halves(linear: Any, parts: int) -> tuple[Any, ...]:
    """Weight and bias of each of the products that a module computes side by side."""
    weights = linear.weight.chunk(parts)
    biases = [None] * parts if linear.bias is None else linear.bias.chunk(parts)
    return tuple(zip(weights, biases, strict=True))


def read_head(model: Any) -> ClassifierHead:
    """The head of a `ModernBertForSequenceClassification`."""
    config, head = model.config, model.head
    return ClassifierHead(
        model.classifier,
        head.dense,
        config.classifier_activation,
        pooling=config.classifier_pooling,
        state_norm=head.norm,
    )
