"""What a trained trunk makes of rows, and how its exits would fare on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from consistentee.modeling import ConsistentEEForSequenceClassification, ConsistentEEOutput

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@torch.no_grad()
def pooled_states(
    model: ConsistentEEForSequenceClassification,
    data: Dataset,
    collate: DataCollatorWithPadding,
    batch_size: int = 64,
) -> Tensor:
    """What the heads read of each row, in the order of `data`: ``[N, L, H]`` float32.

    Rows of like length share a batch.
    """
    model.eval()
    order = np.argsort(data["length"], kind="stable")
    states = []
    for batch in DataLoader(data.select(order), batch_size, collate_fn=collate):
        inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
        states.append(model.pooled_states(**inputs))
    return torch.cat(states)[torch.from_numpy(np.argsort(order))]


@torch.no_grad()
def exit_report(
    model: ConsistentEEForSequenceClassification, states: Tensor, labels: Tensor
) -> dict[str, Any]:
    """How rows fare that leave at the first layer whose policy is above the model's threshold.

    Args:
        states: ``[N, L, H]`` from `pooled_states`.
        labels: ``[N]`` int64.

    Returns:
        ``layer_accuracy`` of each layer on all rows, ``full_depth_accuracy`` of the last one,
        ``accuracy`` at the exits, ``mean_exit_layer`` and ``layer_ratio`` (L over it); accuracies
        in [0, 1].
    """
    output = model.eval()(pooled_states=states)
    correct = _correct(output, labels)
    layer_accuracy = correct.mean(dim=0).tolist()
    mean_exit_layer, accuracy = _leave(output, correct, model.config.threshold)
    return {
        "layer_accuracy": layer_accuracy,
        "full_depth_accuracy": layer_accuracy[-1],
        "accuracy": accuracy,
        "mean_exit_layer": mean_exit_layer,
        "layer_ratio": correct.shape[1] / mean_exit_layer,
    }


@torch.no_grad()
def exit_curve(
    model: ConsistentEEForSequenceClassification,
    states: Tensor,
    labels: Tensor,
    thresholds: Sequence[float],
) -> list[tuple[float, float]]:
    """Mean exit layer and accuracy at each threshold; `states` and `labels` as in `exit_report`."""
    output = model.eval()(pooled_states=states)
    correct = _correct(output, labels)
    return [_leave(output, correct, threshold) for threshold in thresholds]


def _correct(output: ConsistentEEOutput, labels: Tensor) -> Tensor:
    """1 where a layer's classifier is right, ``[N, L]`` float32."""
    predicted = output.exit_logits.argmax(dim=-1)
    return (predicted == labels.to(predicted.device)[:, None]).float()


def _leave(output: ConsistentEEOutput, correct: Tensor, threshold: float) -> tuple[float, float]:
    """Mean exit layer and accuracy of rows that leave where their policy is above `threshold`."""
    leaves = output.policy_logits.sigmoid() > threshold
    last = leaves.new_ones(len(leaves), 1)
    exit_index = torch.cat((leaves, last), dim=1).int().argmax(dim=1)
    accuracy = correct.gather(1, exit_index[:, None]).mean().item()
    return exit_index.float().mean().item() + 1, accuracy
