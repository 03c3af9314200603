"""DeBERTa v2 and v3: BERT's layers, scores by content and distance (arXiv 2006.03654)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from consistentee_ext.families.bert import block_around
from consistentee_ext.families.reader import ClassifierHead, Reader
from consistentee_ext.layers import Block, Convolution, Embedding, Stack
from consistentee_ext.weights import BUCKETS, AttentionForm, RelativeTerms

LAST_NORM: str | None = None


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `DebertaV2Model`.

    Raises:
        ValueError: it has a convolution of groups, or of an even number of tokens.
    """
    encoder, config = model.encoder, reader.config
    table = encoder.get_rel_embedding()  # normed, where the model does that

    def read_block(reader: Reader, layer: Any) -> Block:
        attention = layer.attention.self
        products = reader.attention(
            attention.query_proj,
            attention.key_proj,
            attention.value_proj,
            layer.attention.output.dense,
            config.num_attention_heads,
            _form(reader, attention, table),
        )
        return block_around(products, reader, layer)

    embedding = read_embedding(model.embeddings, reader)
    first, *others = reader.blocks(encoder.layer, read_block)
    if encoder.conv is not None:
        first = replace(first, convolution=_convolution(encoder.conv, reader))
    return Stack(embedding, (first, *others))


def _convolution(module: Any, reader: Reader) -> Convolution:
    conv = module.conv
    (width,) = conv.kernel_size
    if conv.groups != 1 or width % 2 == 0:
        raise ValueError(
            "model: expected a convolution of an odd number of tokens in one group, "
            f"got {width} in {conv.groups}"
        )
    weight = conv.weight.permute(0, 2, 1).flatten(1)  # neighbours side by side
    product = reader.product((weight, conv.bias), activation=module.conv_act)
    return Convolution(product, reader.norm(module.LayerNorm))


def read_embedding(embeddings: Any, reader: Reader) -> Embedding:
    """What comes before the layers; the model may have neither segments nor positions."""
    types, positions = embeddings.token_type_embeddings, embeddings.position_embeddings
    project = embeddings.embed_proj
    return reader.embedding(
        embeddings.word_embeddings.weight,
        None if types is None else types.weight,
        None if positions is None else positions.weight,
        embeddings.LayerNorm,
        by_place=True,
        product=None if project is None else reader.linear(project),
        product_first=True,
    )


def _form(reader: Reader, attention: Any, table: torch.Tensor | None) -> AttentionForm:
    kinds = attention.pos_att_type
    scale = (attention.attention_head_size * (1 + ("c2p" in kinds) + ("p2c" in kinds))) ** -0.5
    if table is None:
        return AttentionForm(scale=scale)
    span = attention.pos_ebd_size
    shared = "" if attention.share_att_key else "pos_"
    keys = getattr(attention, f"{shared}key_proj", None) if "c2p" in kinds else None
    queries = getattr(attention, f"{shared}query_proj", None) if "p2c" in kinds else None
    distance = _buckets(attention, reader.config.max_position_embeddings)
    terms = relative_terms(reader, table, keys, queries, span, distance)
    return AttentionForm(scale=scale, relative=terms)


@torch.no_grad()
def relative_terms(
    reader: Reader,
    table: torch.Tensor,
    keys: nn.Linear | None,
    queries: nn.Linear | None,
    span: int,
    distance: torch.Tensor,
) -> RelativeTerms:
    """The terms of an attention's heads, from what its products make of the table of distances.

    Args:
        reader: of the model.
        table: ``[2 span, H]`` or more rows.
        keys: the product that content is compared with, where there is that term.
        queries: the product that is compared with content.
        span: distances, or their buckets, from -span to span - 1 have entries of their own.
        distance: of each distance from ``1 - longest`` on, or its bucket.
    """
    used = torch.nn.functional.pad(table[: 2 * span], (0, 0, 0, -2 * span % BUCKETS))

    def by_heads(linear: nn.Linear) -> torch.Tensor:
        heads: torch.Tensor = linear(used).unflatten(-1, (reader.config.num_attention_heads, -1))
        return heads

    entries = (distance + span).clamp(0, 2 * span - 1).int().to(reader.device)
    return RelativeTerms(
        None if keys is None else reader.exact(by_heads(keys).permute(1, 0, 2)),
        None if queries is None else reader.exact(by_heads(queries).permute(1, 2, 0)),
        entries,
    )


def _buckets(attention: Any, longest: int) -> torch.Tensor:
    """The bucket of each distance from ``1 - longest`` to ``longest - 1``, by the model's own
    function.
    """
    one, all_ = torch.empty(1, 1), torch.empty(longest, 1)
    options = (attention.position_buckets, attention.max_relative_positions)
    ahead = build_relative_position(one, all_, *options).flatten()  # 0 to 1 - longest
    behind = build_relative_position(all_, one, *options).flatten()  # 0 to longest - 1
    return torch.cat([ahead.flip(0), behind[1:]])


def read_head(model: Any) -> ClassifierHead:
    """The head of a `DebertaV2ForSequenceClassification`."""
    return ClassifierHead(model.classifier, model.pooler.dense, model.config.pooler_hidden_act)
