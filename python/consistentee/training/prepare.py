"""From tables of text to a trained checkpoint."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from consistentee.atomic_files import Json
from consistentee.data.encode import encode
from consistentee.data.labels import label_names
from consistentee.model.modeling import finding_backbone, max_length_of
from consistentee.training.settings import ConfigFields, TrainingSettings
from consistentee.training.train import train
from consistentee_ext.names import MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_LENGTH = 128


def train_on_splits(
    backbone: str | os.PathLike[str],
    splits: DatasetDict,
    output: str | os.PathLike[str],
    settings: TrainingSettings,
    max_length: int | None = None,
    **config: Unpack[ConfigFields],
) -> Json:
    """Train on the ``train`` and ``dev`` tables of `load_splits`; return the training log.

    Args:
        backbone: a pretrained encoder: folder or hub name.
        splits: tables of text and labels.
        output: the checkpoint folder to make.
        settings: how to train.
        max_length: rows are truncated to so many tokens, here and by all that reads the checkpoint;
            default `MAX_LENGTH`, or the backbone's positions if it has fewer.
        config: fields of `ConsistentEEConfig`.
    """
    data = prepare(backbone, splits, max_length, config)
    return train(backbone, data.train, data.dev, output, data.tokenizer, settings, **data.config)


@dataclass(frozen=True)
class Prepared:
    """Tokenized tables, and a configuration with the fields that follow from them.

    Without a test split ``test`` has the dev rows.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    dev: Dataset
    test: Dataset
    config: ConfigFields


def prepare(
    backbone: str | os.PathLike[str],
    splits: DatasetDict,
    max_length: int | None,
    config: ConfigFields,
) -> Prepared:
    """Token ids and labels of each split; the arguments are those of `train_on_splits`.

    Raises:
        ValueError: the backbone or its tokenizer cannot be loaded, `max_length` is above its
            positions, or a class has only one row.
    """
    with finding_backbone(backbone, "a folder or hub name of an encoder with its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False)
        encoder_config = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
        with torch.device("meta"):
            positions = max_length_of(AutoModel.from_config(encoder_config))
    if max_length is None:
        max_length = min(MAX_LENGTH, positions)
    if max_length > positions:
        raise ValueError(
            f"max_length: expected at most {positions}, the encoder's number of positions, "
            f"got {max_length}"
        )
    tokenizer.model_max_length = max_length  # saved with the checkpoint, for its other readers
    problem_type = config.get("problem_type")
    names = None if problem_type == REGRESSION else label_names(splits["train"])
    data = {
        name: encode(table, tokenizer, max_length, names, problem_type)
        for name, table in splits.items()
    }
    found: ConfigFields = {"max_tokens": max_length}
    # Where rows are pairs, heads compare the two texts.
    is_pair = "sentence2" in splits["train"].column_names
    pooling = config.get("pooling", "pair" if is_pair else "mean")
    if pooling == "pair":
        if tokenizer.sep_token_id is None:
            raise ValueError("pooling: expected a tokenizer with a separator for 'pair', got none")
        found["separator_id"] = tokenizer.sep_token_id
    found["pooling"] = pooling
    if names is None:
        found["num_labels"] = 1
    else:
        if problem_type != MULTI_LABEL:
            _check_classes(splits["train"])
        found["id2label"] = dict(enumerate(names))
        found["label2id"] = {name: index for index, name in enumerate(names)}
    test = data.get("test", data["dev"])
    return Prepared(tokenizer, data["train"], data["dev"], test, {**config, **found})


def _check_classes(table: Dataset) -> None:
    """Raise unless every class has two rows, so that one can be held out."""
    label, rows = min(Counter(table["label"]).items(), key=lambda item: item[1])
    if rows < 2:
        raise ValueError(f"train: expected two rows or more of each label, got one of {label!r}")
