"""Memorized layers on disk, found again by what a row holds."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from consistentee.training.memorized import load_memorized_layers, row_hashes, save_memorized_layers

DATA = Dataset.from_dict(
    {"input_ids": [[1, 2], [1, 2], [1, 2, 3], [12]], "labels": [0, 1, 0, 0], "length": [2, 2, 3, 1]}
)


def test_a_row_is_known_by_what_it_holds():
    hashes = row_hashes(DATA)
    assert len(set(hashes)) == 4
    assert row_hashes(DATA.select([3, 1, 1, 0])) == [hashes[i] for i in (3, 1, 1, 0)]
    # The same in every process and version: a checkpoint outlives them.
    assert hashes[3] == 2027634211345070526


def test_layers_come_back(tmp_path):
    hashes = row_hashes(DATA)
    layers = dict(zip(hashes, [3, 1, 6, 2], strict=True))
    save_memorized_layers(tmp_path, layers)
    assert load_memorized_layers(tmp_path) == layers
    file = load_file(tmp_path / "memorized_layers.safetensors")
    assert {name: column.dtype for name, column in file.items()} == {
        "row_hash": torch.int64,
        "memorized_layer": torch.int64,
    }


def test_a_checkpoint_without_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"memorized_layers\.safetensors: expected"):
        load_memorized_layers(tmp_path)
