"""Measures a checkpoint on a labelled table for a report.

Letters: N rows, L layers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from consistentee.atomic_files import Json
from consistentee.data.batch import Batch
from consistentee.data.encode import encode_for
from consistentee.evaluation.checkpoints import answer_type_of, evaluate_checkpoint
from consistentee.evaluation.evaluate import (
    Evaluation,
    load_model,
    padded_batches,
    time_passes,
)
from consistentee.measures.curves import (
    Curve,
    failure_auroc,
    oracle_curve,
    threshold_curve,
    truncation_curve,
)
from consistentee.measures.exit_scores import exit_scores
from consistentee.measures.hardness import correct_layers, memorized_layer
from consistentee.measures.layer_outputs import exit_outputs
from consistentee.model.modeling import ConsistentEEOutput
from consistentee.report.contents import ClassDepth, Example, Report, ScoreBin, Timing
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import class_names
from consistentee_ext.criteria import PLAIN_CRITERIA
from consistentee_ext.names import SINGLE_LABEL

BINS = 10
EXAMPLES = 8
GRID_STEPS = 20  # of a mean over seeds, for each layer
REPEATS = 3
TIMED_THRESHOLDS = 6


def build_report(
    checkpoint: str | os.PathLike[str],
    table: Dataset,
    title: str | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    comparison: Json | None = None,
) -> Report:
    """Evaluate a classifier and measure all that `consistentee.report.write.write_report` shows.

    Args:
        checkpoint: folder written by `consistentee train`.
        table: labelled text, see `consistentee.data.tables.load_table`.
        title: of the page; by default the checkpoint's name.
        threshold: in place of the checkpoint's.
        alpha: of an adjustable checkpoint, in place of its default.
        comparison: result of `consistentee.evaluation.comparison.compare` on the same rows. The
            mean curves of its methods are then shown with the checkpoint's own curve, in place of
            other criteria on the same weights.

    Raises:
        ValueError: the checkpoint is not a classifier or has no exits, or the comparison has other
            rows or layers.
    """
    kind = answer_type_of(checkpoint)
    if kind != SINGLE_LABEL:
        raise ValueError(f"checkpoint: expected a classifier, got a {kind}: {checkpoint}")
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, alpha=alpha)
    compared = None
    if comparison is not None:
        compared = mean_curves(comparison, len(table), encoder.num_layers)
    evaluation = evaluate_checkpoint(checkpoint, table, threshold, alpha)
    model = load_model(checkpoint)
    if alpha is not None:
        model.config.alpha = alpha
    data = encode_for(model.config, table, encoder.tokenizer, model.max_length)
    output = exit_outputs(model, data, DataCollatorWithPadding(encoder.tokenizer))
    labels = torch.tensor(data["labels"])
    correct = correct_layers(output.exit_logits, labels)
    scores = exit_scores(encoder.criterion, output.exit_logits, output.policy_logits)
    exits = torch.tensor(evaluation.exit_layers)
    own = threshold_curve(scores, correct)
    others = same_weights(encoder.criterion, output, correct) if compared is None else compared
    names = class_names(model.config)
    examples = _examples(table, [names[label] for label in data["labels"]], names, evaluation)
    batches = padded_batches(data, encoder.tokenizer, evaluation.metrics["batch_size"])
    return Report(
        title=Path(checkpoint).name if title is None else title,
        metrics=evaluation.metrics,
        curves={f"this checkpoint, by {encoder.criterion}": own, **others},
        seeds=None if comparison is None else len(comparison["curves"]),
        exit_histogram=evaluation.metrics["exit_histogram"],
        hardness=hardness_table(memorized_layer(correct), exits, encoder.num_layers),
        reliability=score_bins(scores, correct, exits),
        failure_auroc=failure_auroc(scores, correct),
        classes=class_depths(labels, torch.tensor(evaluation.predicted), exits, names),
        timings=time_thresholds(encoder, batches, spread_thresholds(own)),
        first_out=examples[:EXAMPLES],
        last_out=examples[::-1][:EXAMPLES],
    )


def same_weights(criterion: str, output: ConsistentEEOutput, correct: Tensor) -> dict[str, Curve]:
    """Curves of the criteria except `criterion`, of single layers for all rows, of an oracle."""
    curves = {
        f"by {name}, same weights": threshold_curve(
            exit_scores(name, output.exit_logits, output.policy_logits), correct
        )
        for name in PLAIN_CRITERIA
        if name != criterion
    }
    layer_accuracy = dict(enumerate(correct.double().mean(dim=0).tolist(), start=1))
    curves["every row stops at this layer"] = truncation_curve(layer_accuracy)
    curves["oracle"] = oracle_curve(correct)
    return curves


def mean_curves(comparison: Json, rows: int, num_layers: int) -> dict[str, Curve]:
    """The mean over seeds of each method's curve, at the depths that all seeds' curves have.

    Args:
        comparison: see `consistentee.evaluation.comparison.compare`.
        rows: number of rows that the comparison must have.
        num_layers: layer that its curves must end at.

    Raises:
        ValueError: the comparison has no curves, or another number of rows or layers.
    """
    if not comparison.get("curves") or "rows" not in comparison:
        raise ValueError(
            "comparison: expected 'rows' and 'curves', as `consistentee compare` writes them, got "
            f"{sorted(comparison)}"
        )
    if comparison["rows"] != rows:
        raise ValueError(f"comparison: expected one on {rows} rows, got {comparison['rows']}")
    found: dict[str, Curve] = {}
    for method in comparison["curves"][0]:
        curves = [Curve(*map(tuple, seed[method])) for seed in comparison["curves"]]
        for curve in curves:
            if curve.layers[-1] != num_layers:
                raise ValueError(
                    f"comparison: expected curves of {num_layers} layers, got {method!r} of "
                    f"{curve.layers[-1]:g}"
                )
        grid = np.linspace(1, num_layers, GRID_STEPS * (num_layers - 1) + 1)
        start = max(curve.layers[0] for curve in curves)
        layers = [start, *grid[grid > start].tolist()]
        accuracy = np.mean([[curve.at(layer) for layer in layers] for curve in curves], axis=0)
        found[method] = Curve(tuple(layers), tuple(accuracy.tolist()))
    return found


def hardness_table(memorized: Tensor, exits: Tensor, num_layers: int) -> list[list[int]]:
    """Count rows by Memorized Layer and exit layer, both ``[N]`` in 1..L: L lists of L."""
    cells = (memorized - 1) * num_layers + exits - 1
    return torch.bincount(cells, minlength=num_layers**2).view(num_layers, num_layers).tolist()


def score_bins(scores: Tensor, correct: Tensor, exits: Tensor) -> list[ScoreBin]:
    """How often an answer is right, by its exit score, at the early layers that rows reach.

    The answers are divided into `BINS` bins of equal counts. Equal scores share a bin, so a
    criterion with few distinct scores has fewer bins.

    Args:
        scores: ``[N, L-1]``.
        correct: ``[N, L]``.
        exits: ``[N]``, the layer each row left at.
    """
    layers = torch.arange(1, correct.shape[1])
    reached = exits[:, None] >= layers
    values = scores[reached].double().numpy()
    right = correct[:, :-1][reached].numpy()
    left = (exits[:, None] == layers)[reached].numpy()
    if not values.size:
        return []
    # Positions in integers: the rounding of np.quantile would move an edge by one answer.
    last = np.maximum(values.size * np.arange(1, BINS) // BINS, 1) - 1
    edges = np.unique(np.sort(values)[last])
    numbers = np.searchsorted(edges, values, side="left")
    return [
        ScoreBin(
            low=float(values[inside].min()),
            high=float(values[inside].max()),
            score=float(values[inside].mean()),
            right=float(right[inside].mean()),
            answers=int(inside.sum()),
            left=int(left[inside].sum()),
        )
        for inside in (numbers == number for number in np.unique(numbers))
    ]


def class_depths(
    labels: Tensor, predicted: Tensor, exits: Tensor, names: Sequence[str]
) -> list[ClassDepth]:
    """Depth and accuracy of the rows of each class that has any, the shallowest first.

    Args:
        labels: ``[N]``.
        predicted: ``[N]``, at the exit.
        exits: ``[N]``, the layer each row left at.
        names: of the classes.
    """
    depths = []
    for number in labels.unique().tolist():
        rows = labels == number
        depths.append(
            ClassDepth(
                label=names[number],
                mean_exit_layer=exits[rows].double().mean().item(),
                accuracy=(predicted[rows] == number).double().mean().item(),
                rows=int(rows.sum()),
            )
        )
    return sorted(depths, key=lambda depth: depth.mean_exit_layer)


def spread_thresholds(curve: Curve, count: int = TIMED_THRESHOLDS) -> list[float]:
    """At most `count` thresholds with evenly spaced mean exit layers; the last is 1, full depth."""
    usable = [
        (layer, threshold)
        for layer, threshold in zip(curve.layers, curve.thresholds, strict=True)
        if 0.0 < threshold < 1.0
    ]
    wanted = np.linspace(1.0, curve.layers[-1], count)[:-1].tolist() if usable else []
    nearest = [min(usable, key=lambda point: abs(point[0] - layer))[1] for layer in wanted]
    return [*dict.fromkeys(nearest), 1.0]


def time_thresholds(
    encoder: FastEarlyExitEncoder, batches: Sequence[Batch], thresholds: Sequence[float]
) -> list[Timing]:
    """Seconds of whole passes at each threshold, interleaved; the encoder keeps the last one."""
    layers: dict[float, list[Tensor]] = {threshold: [] for threshold in thresholds}

    def run(threshold: float, batch: Batch) -> None:
        if encoder.threshold != threshold:
            encoder.threshold = threshold
        layers[threshold].append(encoder(**batch).exit_layers)

    passes = {str(threshold): partial(run, threshold) for threshold in thresholds}
    seconds = time_passes(passes, batches, REPEATS, "time at each threshold")
    return [
        Timing(
            threshold,
            torch.cat(layers[threshold]).double().mean().item(),
            tuple(seconds[str(threshold)]),
        )
        for threshold in thresholds
    ]


def _examples(
    table: Dataset, labels: Sequence[str], names: Sequence[str], evaluation: Evaluation
) -> list[Example]:
    """The rows in the order in which they leave; within a layer the highest score first."""
    texts = list(table["sentence1"])
    if "sentence2" in table.column_names:
        texts = [f"{a} | {b}" for a, b in zip(texts, table["sentence2"], strict=True)]
    examples = [
        Example(text, label, names[predicted], exit_layer, score)
        for text, label, predicted, exit_layer, score in zip(
            texts,
            labels,
            evaluation.predicted,
            evaluation.exit_layers,
            evaluation.exit_scores,
            strict=True,
        )
    ]
    return sorted(examples, key=lambda example: (example.exit_layer, -example.score))
