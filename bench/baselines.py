"""What ours is measured against: the same weights, run as users run them today."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee import ConsistentEEForSequenceClassification
from consistentee.evaluation import Batch
from consistentee.modeling import pooling_weights


def published_early_exit(model: ConsistentEEForSequenceClassification, row: Batch) -> Tensor:
    """Early exit as published: one row, and after each layer a look at the policy on the host.

    Args:
        model: the Hugging Face model; its own modules run, layer by layer.
        row: a batch of one row without padding.
    """
    hidden = model.backbone.embeddings(row["input_ids"], row.get("token_type_ids"))
    weights = pooling_weights(row["attention_mask"], model.config.pooling)
    label = torch.tensor([-1])
    for layer, head in zip(model.backbone.encoder.layer, model.heads, strict=True):
        hidden = layer(hidden)
        output = head((weights[:, None] @ hidden)[:, 0], label)
        label = output.logits.argmax(dim=-1)
        if output.policy_logits is None:
            break
        if output.policy_logits.sigmoid().item() > model.config.threshold:
            break
    return output.logits
