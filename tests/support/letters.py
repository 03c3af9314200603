"""A task that trains within a second: is a row's first letter one of the alphabet's second half?"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset
from transformers import BertTokenizer

from consistentee.training.settings import TrainingSettings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
SETTINGS = TrainingSettings(
    epochs=2,
    policy_epochs=2,
    joint_epochs=2,
    batch_size=8,
    policy_batch_size=8,
    joint_batch_size=8,
    held_out=0.25,
    bf16=False,
)
# All 48 rows train a trunk, 36 one that misses the 12 that policies learn from: steps of 8 rows,
# two epochs each.
STEPS = {
    "trunk.held_out": 2 * 5,
    "trunk": 2 * 6,
    "policies": 2 * 2,
    "joint.held_out": 2 * 5,
    "joint": 2 * 6,
    "policies.2": 2 * 2,
}


class Letters(NamedTuple):
    """What a training starts from, in the order in which `train` takes it."""

    backbone: Path
    train: Dataset
    dev: Dataset


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def letters_on(backbone: Path) -> Letters:
    return Letters(backbone, _rows(48, seed=1), _rows(16, seed=2))


def _rows(number: int, seed: int) -> Dataset:
    generator = np.random.default_rng(seed)
    ids = [[2, *generator.integers(5, 31, generator.integers(1, 9)), 3] for _ in range(number)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "token_type_ids": [[0] * len(row) for row in ids],
            "length": [len(row) for row in ids],
            "labels": [int(row[1] >= 18) for row in ids],
        }
    )
