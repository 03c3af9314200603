"""Evaluates and calibrates checkpoints on tables."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from consistentee.atomic_files import write_json
from consistentee.data.encode import encode
from consistentee.evaluation.calibration import (
    threshold_for_accuracy,
    threshold_for_latency,
    threshold_for_ratio,
)
from consistentee.evaluation.evaluate import (
    Evaluation,
    class_names,
    evaluate,
    latency_of,
    load_model,
)
from consistentee.measures.exit_scores import exit_scores
from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs, exit_report
from consistentee.measures.metrics import Quality
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder


@dataclass(frozen=True)
class Calibration:
    """A threshold, and the results at it of the rows it was found on.

    Attributes:
        threshold: as written into the checkpoint.
        layer_ratio: ``L / mean exit layer``.
        quality: by the task's metric.
    """

    threshold: float
    layer_ratio: float
    quality: Quality


def encode_for(
    model: ConsistentEEForSequenceClassification, table: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Dataset:
    """Tokenize a labelled table for a trained model."""
    config = model.config
    names = None if config.regression else class_names(config)
    return encode(table, tokenizer, model.max_length, names, config.problem_type)


def local_config(checkpoint: str | os.PathLike[str]) -> Path:
    """The config.json of a local checkpoint.

    Raises:
        ValueError: there is none.
    """
    file = Path(checkpoint) / "config.json"
    if not file.is_file():
        raise ValueError(f"{checkpoint}: expected a local checkpoint folder, found no config.json")
    return file


def problem_type_of(checkpoint: str | os.PathLike[str]) -> str | None:
    """What a checkpoint predicts, and so what its labels are, as its config.json says."""
    config, _ = PreTrainedConfig.get_config_dict(checkpoint)
    problem_type: str | None = config.get("problem_type")
    return problem_type


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str],
    table: Dataset,
    threshold: float | None = None,
    alpha: float | None = None,
) -> Evaluation:
    """Measure accuracy, layers and seconds of a checkpoint on a labelled table."""
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, threshold=threshold, alpha=alpha)
    _check_trained(checkpoint, encoder)
    model = load_model(checkpoint)
    data = encode_for(model, table, encoder.tokenizer)
    return evaluate(encoder, model, data, encoder.tokenizer)


def calibrate_checkpoint(
    checkpoint: str | os.PathLike[str],
    table: Dataset,
    *,
    max_accuracy_drop: float | None = None,
    confidence: float = 0.95,
    layer_ratio: float | None = None,
    latency_ms: float | None = None,
    batch_size: int = 1,
) -> Calibration:
    """Find the threshold for one goal and write it into the checkpoint's config.json.

    Args:
        checkpoint: a local folder.
        table: labelled rows that the model was not trained on.
        max_accuracy_drop: goal: lose at most this accuracy, guaranteed, see
            `consistentee.evaluation.calibration.threshold_for_accuracy`.
        confidence: of that guarantee.
        layer_ratio: goal: at least this ratio on these rows, see `threshold_for_ratio`.
        latency_ms: goal: at most so many milliseconds for a call of `batch_size` rows, on average,
            measured here, see `threshold_for_latency`.
        batch_size: of `latency_ms`.

    Raises:
        ValueError: no goal or several, a goal that cannot be met, or a checkpoint that cannot be
            calibrated.
    """
    config_file = local_config(checkpoint)
    goals = sum(goal is not None for goal in (max_accuracy_drop, layer_ratio, latency_ms))
    if goals != 1:
        raise ValueError(
            f"calibrate: expected one of max_accuracy_drop, layer_ratio and latency_ms, got {goals}"
        )
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint)
    _check_trained(checkpoint, encoder)
    model = load_model(checkpoint)
    config = model.config
    data = encode_for(model, table, encoder.tokenizer)
    output = exit_outputs(model, data, DataCollatorWithPadding(encoder.tokenizer))
    scores = exit_scores(
        config.criterion, output.exit_logits, output.policy_logits, config.multi_label
    )
    labels = torch.tensor(data["labels"])
    if layer_ratio is not None:
        threshold = threshold_for_ratio(scores, layer_ratio)
    elif latency_ms is not None:
        latency = latency_of(encoder, data, batch_size)
        threshold = threshold_for_latency(scores, latency_ms, latency)
    else:
        assert max_accuracy_drop is not None  # the third goal
        if config.regression:
            raise ValueError("max_accuracy_drop: expected a classifier, got a regression")
        correct = correct_layers(output.exit_logits, labels)
        threshold = threshold_for_accuracy(scores, correct, max_accuracy_drop, confidence)
    config.threshold = threshold
    written = json.loads(config_file.read_text(encoding="utf-8"))
    write_json(config_file, {**written, "threshold": threshold})
    report = exit_report(output, labels, config)
    quality = Quality.from_figures(report, config.metric)
    return Calibration(threshold, report["layer_ratio"], quality)


def _check_trained(checkpoint: str | os.PathLike[str], encoder: FastEarlyExitEncoder) -> None:
    if encoder.config.model_type != "consistentee":
        raise ValueError(
            f"{checkpoint}: expected a ConsistentEE checkpoint, got one of model_type "
            f"{encoder.config.model_type!r}, which has no exits"
        )
