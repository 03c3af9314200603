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
)

from consistentee.atomic_files import write_json
from consistentee.data.encode import encode_for
from consistentee.evaluation.evaluate import (
    Evaluation,
    evaluate,
    latency_of,
    load_model,
)
from consistentee.measures.agreement import agreement
from consistentee.measures.calibration import (
    threshold_for_accuracy,
    threshold_for_agreement,
    threshold_for_latency,
    threshold_for_ratio,
)
from consistentee.measures.exit_scores import at_exit, exit_scores, leave_at
from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs, exit_report
from consistentee.measures.metrics import Quality
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import answer_type
from consistentee_ext.names import TOLERANCE


@dataclass(frozen=True)
class Calibration:
    """A threshold, and the results at it of the rows it was found on.

    Attributes:
        threshold: as written into the checkpoint.
        layer_ratio: ``L / mean exit layer``.
        disagreement: share of the rows that get another answer than at full depth.
        quality: by the task's metric; None without labels.
    """

    threshold: float
    layer_ratio: float
    disagreement: float
    quality: Quality | None


def local_config(checkpoint: str | os.PathLike[str]) -> Path:
    """The config.json of a local checkpoint.

    Raises:
        ValueError: there is none.
    """
    file = Path(checkpoint) / "config.json"
    if not file.is_file():
        raise ValueError(f"{checkpoint}: expected a local checkpoint folder, found no config.json")
    return file


def answer_type_of(checkpoint: str | os.PathLike[str]) -> str:
    """What a checkpoint answers with, and so what its labels are, as its config.json says."""
    fields, _ = PreTrainedConfig.get_config_dict(checkpoint)
    config = PreTrainedConfig.from_dict(
        {
            name: fields[name]
            for name in ("problem_type", "num_labels", "id2label")
            if name in fields
        }
    )
    return answer_type(config)


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
    data = encode_for(model.config, table, encoder.tokenizer, model.max_length)
    return evaluate(encoder, model, data, encoder.tokenizer)


def calibrate_checkpoint(
    checkpoint: str | os.PathLike[str],
    table: Dataset,
    *,
    max_accuracy_drop: float | None = None,
    max_disagreement: float | None = None,
    confidence: float = 0.95,
    tolerance: float = TOLERANCE,
    layer_ratio: float | None = None,
    latency_ms: float | None = None,
    batch_size: int = 1,
    level: str | None = None,
) -> Calibration:
    """Find the threshold for one goal and write it, or a level, into the checkpoint's config.json.

    Args:
        checkpoint: a local folder.
        table: rows that the model was not trained on; only `max_accuracy_drop` needs labels.
        max_accuracy_drop: goal: lose at most this accuracy, guaranteed, see
            `consistentee.measures.calibration.threshold_for_accuracy`.
        max_disagreement: goal: at most this share of rows gets another answer than at full depth,
            guaranteed, see `threshold_for_agreement`.
        confidence: of a guarantee.
        tolerance: by how much a number may differ, see `consistentee.measures.agreement.agreement`.
        layer_ratio: goal: at least this ratio on these rows, see `threshold_for_ratio`.
        latency_ms: goal: at most so many milliseconds for a call of `batch_size` rows, on average,
            measured here, see `threshold_for_latency`.
        batch_size: of `latency_ms`.
        level: a name to write the threshold under, with its guarantee, in place of the
            checkpoint's ``threshold``; see ``levels`` of `ConsistentEEConfig`. For goals with a
            guarantee.

    Raises:
        ValueError: no goal or several, a goal that cannot be met, a level without guarantee, or a
            checkpoint that cannot be calibrated.
    """
    config_file = local_config(checkpoint)
    goals = (max_accuracy_drop, max_disagreement, layer_ratio, latency_ms)
    given = sum(goal is not None for goal in goals)
    if given != 1:
        raise ValueError(
            "calibrate: expected one of max_accuracy_drop, max_disagreement, layer_ratio and "
            f"latency_ms, got {given}"
        )
    if level is not None and max_accuracy_drop is None and max_disagreement is None:
        raise ValueError(
            "level: expected max_accuracy_drop or max_disagreement with it, the goals that are "
            "guaranteed"
        )
    if level == "":
        raise ValueError("level: expected a name, got an empty one")
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint)
    _check_trained(checkpoint, encoder)
    model = load_model(checkpoint)
    config = model.config
    data = encode_for(model.config, table, encoder.tokenizer, model.max_length)
    output = exit_outputs(model, data, DataCollatorWithPadding(encoder.tokenizer))
    scores = exit_scores(
        config.criterion, output.exit_logits, output.policy_logits, config.multi_label
    )
    agrees = agreement(output.exit_logits, output.logits, config, tolerance)
    labels = torch.tensor(data["labels"]) if "labels" in data.column_names else None
    if layer_ratio is not None:
        threshold = threshold_for_ratio(scores, layer_ratio)
    elif latency_ms is not None:
        latency = latency_of(encoder, data, batch_size)
        threshold = threshold_for_latency(scores, latency_ms, latency)
    elif max_disagreement is not None:
        threshold = threshold_for_agreement(scores, agrees, max_disagreement, confidence)
    else:
        assert max_accuracy_drop is not None  # the fourth goal
        if config.regression:
            raise ValueError("max_accuracy_drop: expected a classifier, got a regression")
        if labels is None:
            raise ValueError("max_accuracy_drop: expected labels, got a table without")
        correct = correct_layers(output.exit_logits, labels)
        threshold = threshold_for_accuracy(scores, correct, max_accuracy_drop, confidence)
    config.threshold = threshold
    written = json.loads(config_file.read_text(encoding="utf-8"))
    if level is None:
        written["threshold"] = threshold
    else:
        goal = {"max_accuracy_drop": max_accuracy_drop, "max_disagreement": max_disagreement}
        written["levels"] = (written.get("levels") or {}) | {
            level: {
                "threshold": threshold,
                "guarantee": {name: most for name, most in goal.items() if most is not None},
                "confidence": confidence,
                "rows": len(scores),
            }
        }
    write_json(config_file, written)
    exits = leave_at(scores, threshold)
    quality = None
    if labels is not None:
        quality = Quality.from_figures(exit_report(output, labels, config), config.metric)
    return Calibration(
        threshold,
        layer_ratio=agrees.shape[1] / exits.double().mean().item(),
        disagreement=1.0 - at_exit(agrees, exits).double().mean().item(),
        quality=quality,
    )


def _check_trained(checkpoint: str | os.PathLike[str], encoder: FastEarlyExitEncoder) -> None:
    if encoder.config.model_type != "consistentee":
        raise ValueError(
            f"{checkpoint}: expected a ConsistentEE checkpoint, got one of model_type "
            f"{encoder.config.model_type!r}, which has no exits"
        )
