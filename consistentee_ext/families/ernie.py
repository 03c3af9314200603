"""ERNIE: BERT with an embedding of the task, of which inference takes the first."""

from __future__ import annotations

from typing import Any

from consistentee_ext.families.bert import LAST_NORM, read_block, read_head
from consistentee_ext.families.reader import Reader
from consistentee_ext.layers import Stack

__all__ = ["LAST_NORM", "read_head", "read_stack"]


def read_stack(model: Any, reader: Reader) -> Stack:
    """An `ErnieModel`."""
    embeddings = model.embeddings
    types = embeddings.token_type_embeddings.weight
    if reader.config.use_task_id:
        types = types + embeddings.task_type_embeddings.weight[0]
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        types,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
    )
    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))
