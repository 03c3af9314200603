"""From tables to a checkpoint, from a checkpoint to figures: what the command line does."""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer

from consistentee.data import encode, label_names
from consistentee.evaluation import Evaluation, class_names, evaluate, load_model
from consistentee.settings import TrainingSettings
from consistentee.training import train
from consistentee_ext import FastEarlyExitEncoder

MAX_LENGTH = 128


def train_on_splits(
    backbone: str | os.PathLike[str],
    splits: DatasetDict,
    output: str | os.PathLike[str],
    settings: TrainingSettings,
    max_length: int = MAX_LENGTH,
    **config: Any,
) -> dict[str, Any]:
    """Train on the ``train`` and ``dev`` tables of `load_splits`; returns the training log.

    Args:
        backbone: a pretrained encoder: folder or hub name.
        splits: tables of text and labels.
        output: the checkpoint folder to make.
        settings: how to train.
        max_length: tokens a row is cut at; the backbone's own limit where that is lower.
        config: fields of `ConsistentEEConfig`.
    """
    tokenizer = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False)
    positions = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
    max_length = min(max_length, getattr(positions, "max_position_embeddings", max_length))
    names = label_names(splits["train"])
    train_data, dev_data = (
        encode(splits[name], tokenizer, max_length, names) for name in ("train", "dev")
    )
    return train(
        backbone,
        train_data,
        dev_data,
        output,
        tokenizer,
        settings,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        **config,
    )


def evaluate_checkpoint(
    checkpoint: str | os.PathLike[str], table: Dataset, threshold: float | None = None
) -> Evaluation:
    """Accuracy, layers and seconds of a checkpoint on a labelled table."""
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, threshold=threshold)
    _check_trained(checkpoint, encoder)
    data = encode(table, encoder.tokenizer, encoder.max_positions, class_names(encoder.config))
    return evaluate(encoder, load_model(checkpoint), data, encoder.tokenizer)


def predict_table(
    checkpoint: str | os.PathLike[str], table: Dataset, threshold: float | None = None
) -> Dataset:
    """The table with three columns more: ``prediction``, ``exit_layer`` and ``exit_score``."""
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, threshold=threshold)
    texts = (
        list(zip(table["sentence1"], table["sentence2"], strict=True))
        if "sentence2" in table.column_names
        else list(table["sentence1"])
    )
    output = encoder.predict(texts, show_progress_bar=True)
    names = class_names(encoder.config)
    columns = {
        "prediction": [names[index] for index in output.logits.argmax(dim=-1).tolist()],
        "exit_layer": output.exit_layers.tolist(),
        "exit_score": output.exit_scores.tolist(),
    }
    return Dataset.from_dict(table.to_dict() | columns)


def _check_trained(checkpoint: str | os.PathLike[str], encoder: FastEarlyExitEncoder) -> None:
    if encoder.config.model_type != "consistentee":
        raise ValueError(
            f"{checkpoint}: expected a ConsistentEE checkpoint, got one of model_type "
            f"{encoder.config.model_type!r}, which has no exits"
        )
