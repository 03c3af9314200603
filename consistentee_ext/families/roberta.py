"""RoBERTa, XLM-R, CamemBERT and Data2Vec-text: BERT's layers, positions counted by ids."""

from __future__ import annotations

from typing import Any

from consistentee_ext.families.bert import read_block
from consistentee_ext.families.reader import ClassifierHead, Reader
from consistentee_ext.layers import Stack

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `RobertaModel`."""
    embeddings = model.embeddings
    embedding = reader.embedding(
        embeddings.word_embeddings.weight,
        embeddings.token_type_embeddings.weight,
        embeddings.position_embeddings.weight,
        embeddings.LayerNorm,
        padding_id=embeddings.padding_idx,
    )
    return Stack(embedding, reader.blocks(model.encoder.layer, read_block))


def read_head(model: Any) -> ClassifierHead:
    """The head of a `RobertaForSequenceClassification`."""
    return ClassifierHead(model.classifier.out_proj, model.classifier.dense, "tanh")
