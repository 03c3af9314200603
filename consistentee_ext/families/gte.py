"""GTE, NomicBERT and Jina v3: BERT's order of norms, rotary positions; GTE and Nomic have gated
MLPs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from consistentee_ext.families.reader import ClassifierHead, Reader, expect
from consistentee_ext.layers import Block, Mlp, Stack
from consistentee_ext.weights import AttentionForm

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `GteModel`, `NomicBertModel` or `JinaEmbeddingsV3Model`."""
    embeddings, config = model.embeddings, reader.config
    types = embeddings.token_type_embeddings
    words = embeddings.word_embeddings.weight
    if types is None or len(types.weight) == 1:
        words = reader.normed_words(
            words, embeddings.LayerNorm, None if types is None else types.weight
        )
        embedding = reader.embedding(words, None, None, None, by_place=True)
    else:
        embedding = reader.embedding(words, types.weight, None, embeddings.LayerNorm, by_place=True)
    form = AttentionForm(rotation=reader.rotation(model.rotary_emb))

    def read_block(reader: Reader, layer: Any) -> Block:
        attention = layer.self_attn
        return Block(
            attention=reader.attention(
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                attention.o_proj,
                config.num_attention_heads,
                form,
            ),
            attention_norm=reader.norm(layer.post_attention_layernorm),
            mlp=_read_mlp(reader, layer.mlp, config.hidden_act),
            mlp_norm=reader.norm(layer.post_mlp_layernorm),
        )

    return Stack(embedding, reader.blocks(model.layers, read_block))


def _read_mlp(reader: Reader, mlp: Any, activation: str) -> Mlp:
    if hasattr(mlp, "fc1"):
        return Mlp(up=reader.linear(mlp.fc1, activation=activation), down=reader.linear(mlp.fc2))
    return Mlp(
        up=reader.linear(mlp.up_proj),
        down=reader.linear(mlp.down_proj),
        gate=reader.linear(mlp.gate_proj, activation=activation),
    )


def read_head(model: Any) -> ClassifierHead:
    """The head of a `GteForSequenceClassification` or of one of the other two."""
    if isinstance(model.classifier, nn.Linear):
        pooler = model.base_model.pooler
        expect(pooler.activation, nn.Tanh, "the pooler's activation")
        return ClassifierHead(model.classifier, pooler.dense, "tanh")
    return ClassifierHead(model.classifier.out_proj, model.classifier.dense, "tanh")
