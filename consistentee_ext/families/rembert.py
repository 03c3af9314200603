"""RemBERT: BERT's layers behind a narrower embedding."""

from __future__ import annotations

from typing import Any

from consistentee_ext.families.bert import LAST_NORM, read_block, read_head
from consistentee_ext.families.reader import Reader
from consistentee_ext.layers import Stack

__all__ = ["LAST_NORM", "read_head", "read_stack"]


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `RemBertModel`."""
    embeddings = model.embeddings
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
        product=reader.linear(model.encoder.embedding_hidden_mapping_in),
    )
    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))
