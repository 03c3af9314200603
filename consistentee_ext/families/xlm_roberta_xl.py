"""XLM-R XL and XXL: norms before attention and MLP, one behind the last layer, none in front."""

from __future__ import annotations

from typing import Any

from consistentee_ext.families.megatron_bert import read_prenorm_block
from consistentee_ext.families.reader import Reader
from consistentee_ext.families.roberta import read_head
from consistentee_ext.layers import Block, Stack

__all__ = ["LAST_NORM", "read_head", "read_stack"]

LAST_NORM: str | None = "encoder.LayerNorm"


def read_stack(model: Any, reader: Reader) -> Stack:
    """An `XLMRobertaXLModel`."""
    embeddings = model.embeddings
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        None,
        padding_id=embeddings.padding_idx,
    )

    def read_block(reader: Reader, layer: Any) -> Block:
        return read_prenorm_block(
            reader, layer, layer.attention.self_attn_layer_norm, layer.LayerNorm
        )

    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))
