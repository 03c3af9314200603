"""Outputs of every layer of a trained model on a table, and the figures its exits would have."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from consistentee.measures.exit_scores import at_exit, exit_scores, leave_at
from consistentee.measures.metrics import measure, predictions
from consistentee.model.modeling import ConsistentEEForSequenceClassification, ConsistentEEOutput
from consistentee_ext.progress import progress_bar

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@torch.no_grad()
def pooled_states(
    model: ConsistentEEForSequenceClassification,
    data: Dataset,
    collate: DataCollatorWithPadding,
    batch_size: int = 64,
    out: Tensor | None = None,
) -> Tensor:
    """What the heads read of each row, in the order of `data`: ``[N, L, H]`` float32.

    Rows of like length share a batch. `out` is where they are written; by default they are on the
    model's device.
    """
    model.eval()
    shape = (len(data), len(model.heads), model.pooled_size)
    states = torch.empty(shape, device=model.device) if out is None else out
    order = torch.tensor(data["length"]).argsort(stable=True)
    with progress_bar(len(data), "outputs of all layers", "row") as bar:
        loader = DataLoader(data.select(order), batch_size, collate_fn=collate)
        for rows, batch in zip(order.split(batch_size), loader, strict=True):
            inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
            states[rows] = model.pooled_states(**inputs).to(states)
            bar.update(len(rows))
    return states


@torch.no_grad()
def exit_outputs(
    model: ConsistentEEForSequenceClassification,
    data: Dataset,
    collate: DataCollatorWithPadding,
    batch_size: int = 64,
) -> ConsistentEEOutput:
    """Every layer's states, logits and policy logits of each row, in the order of `data`.

    All on the CPU.
    """
    states = pooled_states(model, data, collate, batch_size)
    output = model.eval()(pooled_states=states)
    return ConsistentEEOutput(**{name: value.cpu() for name, value in output.items()})


def exit_report(output: ConsistentEEOutput, labels: Tensor, config: Any) -> dict[str, Any]:
    """Figures of rows that leave at the first layer whose score is above the threshold.

    Args:
        output: from `exit_outputs`.
        labels: ``[N]``, of sets ``[N, C]``.
        config: the model's: criterion, threshold, metric.

    Returns:
        By the name of the metric, such as ``accuracy``: ``layer_accuracy`` of each layer on all
        rows, ``full_depth_accuracy`` of the last one, and ``accuracy`` at the exits;
        ``mean_exit_layer`` and ``layer_ratio`` (L over it).
    """
    metric = config.metric
    predicted = predictions(output.exit_logits, config.answer_type)
    scores = exit_scores(
        config.criterion, output.exit_logits, output.policy_logits, config.multi_label
    )
    exits = leave_at(scores, config.threshold)
    layers = [measure(metric, labels.tolist(), layer.tolist()) for layer in predicted.unbind(1)]
    mean_exit_layer = exits.double().mean().item()
    return {
        f"layer_{metric}": layers,
        f"full_depth_{metric}": layers[-1],
        metric: measure(metric, labels.tolist(), at_exit(predicted, exits).tolist()),
        "mean_exit_layer": mean_exit_layer,
        "layer_ratio": predicted.shape[1] / mean_exit_layer,
    }
