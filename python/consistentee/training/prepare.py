"""From tables of text to a trained checkpoint."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from consistentee.atomic_files import Json
from consistentee.data.encode import encode
from consistentee.data.tables import label_names
from consistentee.model.modeling import finding_backbone
from consistentee.training.settings import ConfigFields, TrainingSettings
from consistentee.training.train import train

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_LENGTH = 128


def train_on_splits(
    backbone: str | os.PathLike[str],
    splits: DatasetDict,
    output: str | os.PathLike[str],
    settings: TrainingSettings,
    max_length: int = MAX_LENGTH,
    **config: Unpack[ConfigFields],
) -> Json:
    """Train on the ``train`` and ``dev`` tables of `load_splits`; return the training log.

    Args:
        backbone: a pretrained encoder: folder or hub name.
        splits: tables of text and labels.
        output: the checkpoint folder to make.
        settings: how to train.
        max_length: rows are truncated to so many tokens, or to the backbone's limit if lower.
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
    max_length: int,
    config: ConfigFields,
) -> Prepared:
    """Token ids and labels of each split; the arguments are those of `train_on_splits`.

    Raises:
        ValueError: the backbone or its tokenizer cannot be loaded, or a class has only one row.
    """
    with finding_backbone(backbone, "a folder or hub name of an encoder with its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False)
        positions = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
    max_length = min(max_length, getattr(positions, "max_position_embeddings", max_length))
    regression = config.get("problem_type") == "regression"
    names = None if regression else label_names(splits["train"])
    data = {
        name: encode(table, tokenizer, max_length, names, regression)
        for name, table in splits.items()
    }
    found: ConfigFields = {"max_tokens": max_length}
    if names is None:
        found["num_labels"] = 1
    else:
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
