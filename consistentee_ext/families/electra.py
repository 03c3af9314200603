"""ELECTRA: BERT's layers behind an embedding that may be narrower, a head with GELU."""

from __future__ import annotations

from typing import Any

from consistentee_ext.families.bert import read_block
from consistentee_ext.families.reader import ClassifierHead, Reader
from consistentee_ext.layers import Stack

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """An `ElectraModel`."""
    embeddings = model.embeddings
    project = getattr(model, "embeddings_project", None)
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
        product=None if project is None else reader.linear(project),
    )
    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))


def read_head(model: Any) -> ClassifierHead:
    """The head of an `ElectraForSequenceClassification`."""
    head = model.classifier
    return ClassifierHead(head.out_proj, head.dense, "gelu")
