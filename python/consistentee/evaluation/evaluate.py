"""Measures a checkpoint: accuracy, layers, and seconds compared with the model at full depth."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from consistentee.atomic_files import Json
from consistentee.data.batch import Batch
from consistentee.measures.layer_outputs import MODEL_INPUTS
from consistentee.measures.metrics import Quality, measure, predictions
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import EarlyExitOutput, FastEarlyExitEncoder
from consistentee_ext.names import METRICS_OF, MULTI_LABEL
from consistentee_ext.progress import progress_bar

SLOW_SECONDS = 20.0


@dataclass(frozen=True)
class Evaluation:
    """Results of a checkpoint on N rows.

    Attributes:
        metrics: what ``consistentee evaluate --json`` writes: the `Quality` by accuracy (not in
            regression) and by the task's metric, of sets by all they have, layers, seconds and the
            setup. Seconds are medians of whole passes over the rows, without tokenisation.
        predicted: ``[N]`` class, number or set (C times 0 or 1) of each row at its exit.
        exit_layers: ``[N]``, 1-based.
        exit_scores: ``[N]``.
    """

    metrics: Json
    predicted: list[Any]
    exit_layers: list[int]
    exit_scores: list[float]


def load_model(checkpoint: str | os.PathLike[str]) -> ConsistentEEForSequenceClassification:
    """Load the Hugging Face model of a checkpoint, which computes every layer for every row."""
    model = ConsistentEEForSequenceClassification.from_pretrained(
        checkpoint, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    model.eval()
    return model


def full_depth_logits(model: ConsistentEEForSequenceClassification, batch: Batch) -> Tensor:
    """Logits of the last layer, as a Hugging Face model computes them: all layers, one head."""
    hidden = model.backbone(**batch).last_hidden_state
    mask = batch["attention_mask"]
    weights = model.pooling_weights(model.config.poolings[-1], batch["input_ids"], mask)
    pooled = torch.bmm(weights.to(hidden.dtype), hidden).flatten(1)
    no_label = torch.full((len(pooled),), -1, device=pooled.device)
    logits: Tensor = model.heads[-1](pooled, no_label).logits
    return logits


def padded_batches(
    data: Dataset, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> list[Batch]:
    """Batches of the rows in their order, each padded to its longest row."""
    loader = DataLoader(data, batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    return [{name: batch[name] for name in MODEL_INPUTS if name in batch} for batch in loader]


def time_passes(
    passes: Mapping[str, Callable[[Batch], object]],
    batches: Sequence[Batch],
    repeats: int,
    stage: str | None = None,
) -> dict[str, list[float]]:
    """Seconds of `repeats` runs of each pass over the batches, or of one run where they are slow.

    They are interleaved, so that drift affects all alike. Passes are slow where one run of them all
    takes over `SLOW_SECONDS`.

    Args:
        passes: what is called with each batch.
        batches: of a pass.
        repeats: timed runs of each, after one that is not.
        stage: the name on a progress bar; None for no bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    calls = len(passes) * len(batches)
    with progress_bar(calls * (1 + repeats), stage or "", "batch", stage is not None) as bar:
        for number in range(1 + repeats):
            for name, run in passes.items():
                spent = 0.0
                for batch in batches:
                    start = time.perf_counter()
                    run(batch)
                    spent += time.perf_counter() - start
                    bar.update()
                seconds[name].append(spent)
            if number == 0:
                slow = sum(sum(runs) for runs in seconds.values()) > SLOW_SECONDS
                seconds = {name: [] for name in passes}
                bar.total = calls * (2 if slow else 1 + repeats)
            elif slow:
                break
    return seconds


@torch.inference_mode()
def evaluate(
    encoder: FastEarlyExitEncoder,
    model: ConsistentEEForSequenceClassification,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
    repeats: int = 3,
) -> Evaluation:
    """Run N rows with exits and at full depth, on the same batches.

    Args:
        encoder: the checkpoint, with exits.
        model: the same checkpoint as Hugging Face runs it, float32.
        data: from `consistentee.data.encode.encode`: token ids and ``labels``.
        tokenizer: pads the batches.
        batch_size: B, rows of a batch, in the order of `data`.
        repeats: timed passes, of each kind; see `time_passes`.
    """
    batches = padded_batches(data, tokenizer, batch_size)
    labels = list(data["labels"])
    outputs: list[EarlyExitOutput] = []
    full: list[Tensor] = []
    seconds = time_passes(
        {
            "exits": lambda batch: outputs.append(encoder(**batch)),
            "full": lambda batch: full.append(full_depth_logits(model, batch)),
        },
        batches,
        repeats,
        "time of a pass",
    )
    del outputs[len(batches) :], full[len(batches) :]
    config = model.config
    exit_layers = _join(outputs, "exit_layers")
    predicted = predictions(_join(outputs, "logits"), config.answer_type)
    at_full_depth = predictions(torch.cat(full), config.answer_type)
    mean_exit_layer = exit_layers.float().mean().item()
    histogram = torch.bincount(exit_layers, minlength=encoder.num_layers + 1)[1:]
    names = {config.metric} if config.regression else {"accuracy", config.metric}
    if config.multi_label:
        names.update(METRICS_OF[MULTI_LABEL])
    qualities = [
        Quality(
            name,
            measure(name, labels, predicted.tolist()),
            measure(name, labels, at_full_depth.tolist()),
        )
        for name in sorted(names)
    ]
    metrics = {
        **{name: value for quality in qualities for name, value in quality.figures().items()},
        "metric": config.metric,
        "mean_exit_layer": mean_exit_layer,
        "num_layers": encoder.num_layers,
        "layer_ratio": encoder.num_layers / mean_exit_layer,
        "exit_histogram": histogram.tolist(),
        "threshold": encoder.threshold,
        "rows": len(labels),
        "batch_size": batch_size,
        "passes": len(seconds["exits"]),
        "seconds": statistics.median(seconds["exits"]),
        "full_depth_seconds": statistics.median(seconds["full"]),
        "backend": encoder.backend,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    scores = _join(outputs, "exit_scores")
    return Evaluation(metrics, predicted.tolist(), exit_layers.tolist(), scores.tolist())


LATENCY_ROWS = 256


def latency_of(
    encoder: FastEarlyExitEncoder, data: Dataset, batch_size: int, repeats: int = 3
) -> Callable[[float], float]:
    """A function that measures the mean milliseconds of a call of `batch_size` rows at a threshold.

    It takes the median of `repeats` passes over the first rows of `data`: at most `LATENCY_ROWS`,
    or one batch if that is more.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    rows = data.select(range(min(len(data), max(LATENCY_ROWS, batch_size))))
    batches = padded_batches(rows, encoder.tokenizer, batch_size)

    def milliseconds(threshold: float) -> float:
        encoder.threshold = threshold
        passes = time_passes({"calls": lambda batch: encoder(**batch)}, batches, repeats)
        return 1000.0 * statistics.median(passes["calls"]) / len(batches)

    return milliseconds


def _join(outputs: Sequence[EarlyExitOutput], name: str) -> Tensor:
    return torch.cat([getattr(output, name) for output in outputs]).cpu()
