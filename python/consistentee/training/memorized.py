"""The Memorized Layer of each training row, stored with the checkpoint.

Rows are known by what they hold, never by their position: the file stays right when the data is
sorted, shuffled, cut or joined.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

MEMORIZED_FILE = "memorized_layers.safetensors"


def row_hashes(data: Dataset) -> list[int]:
    """64 bits of each row's token ids and label, signed, as safetensors keeps them."""
    return [
        int.from_bytes(
            hashlib.blake2b(json.dumps([ids, label]).encode(), digest_size=8).digest(),
            "big",
            signed=True,
        )
        for rows in data.select_columns(["input_ids", "labels"]).iter(1000)
        for ids, label in zip(rows["input_ids"], rows["labels"], strict=True)
    ]


def save_memorized_layers(folder: str | os.PathLike[str], layers: Mapping[int, int]) -> None:
    """Write ``memorized_layers.safetensors``: ``row_hash [N]`` and ``memorized_layer [N]`` int64.

    Args:
        folder: the checkpoint's.
        layers: from a row's hash to its Memorized Layer, in 1..L.
    """
    columns = {"row_hash": list(layers), "memorized_layer": list(layers.values())}
    save_file(
        {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()},
        Path(folder) / MEMORIZED_FILE,
    )


def load_memorized_layers(folder: str | os.PathLike[str]) -> dict[int, int]:
    """What `save_memorized_layers` wrote.

    Raises:
        FileNotFoundError: the folder has no such file.
    """
    file = Path(folder) / MEMORIZED_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the memorized layers of training, found none")
    columns = load_file(file)
    return dict(zip(columns["row_hash"].tolist(), columns["memorized_layer"].tolist(), strict=True))
