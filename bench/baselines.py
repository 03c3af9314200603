"""What ours is measured against: the same weights, run as users run them today."""

from __future__ import annotations

import torch
from torch import Tensor

from consistentee import ConsistentEEForSequenceClassification
from consistentee.evaluation.evaluate import Batch
from consistentee.model.modeling import pooling_weights


def published_early_exit(
    model: ConsistentEEForSequenceClassification, row: Batch, exit_layer: int | None = None
) -> Tensor:
    """Early exit as published: one row, and after each layer a look at the policy on the host.

    Args:
        model: the Hugging Face model; its own modules run, layer by layer.
        row: a batch of one row without padding.
        exit_layer: where the row leaves, whatever the policy says; None leaves it to the policy.
    """
    hidden = model.backbone.embeddings(row["input_ids"], row.get("token_type_ids"))
    weights = pooling_weights(row["attention_mask"], model.config.pooling)
    label = torch.tensor([-1])
    blocks = zip(model.backbone.encoder.layer, model.heads, strict=True)
    for layer, (block, head) in enumerate(blocks, start=1):
        hidden = block(hidden)
        output = head((weights[:, None] @ hidden)[:, 0], label)
        label = output.logits.argmax(dim=-1)
        if output.policy_logits is None:
            break
        leaves = output.policy_logits.sigmoid().item() > model.config.threshold
        if leaves if exit_layer is None else layer == exit_layer:
            break
    return output.logits
