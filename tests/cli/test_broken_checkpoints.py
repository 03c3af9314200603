"""Folders that hold no whole checkpoint, or one that needs care: one line that names the cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import VOCABULARY, Run, check_one_line
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer

from consistentee_ext import FastEarlyExitEncoder


@pytest.fixture
def folder(tmp_path: Path, backbone: Path) -> Path:
    """A whole one, for a test to break."""
    folder = tmp_path / "model"
    config = BertConfig.from_pretrained(backbone, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
    return folder


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def point(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_text(text)


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def edit(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    fields = json.loads((folder / name).read_text())
    change(fields)
    (folder / name).write_text(json.dumps(fields))


def newer_tokenizer(folder: Path) -> None:
    edit(folder, "tokenizer.json", lambda fields: fields["model"].update(type="Later"))


def list_of_labels(folder: Path) -> None:
    edit(folder, "config.json", lambda fields: fields.update(id2label=["a", "b", "c"]))


def larger_tokenizer(folder: Path) -> None:
    words = [*(f"other{n}" for n in range(99)), *VOCABULARY]
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (cut, ("model: expected weights in safetensors, got a file that is cut short",)),
        (point, ("model: expected weights in safetensors, got a file that is cut short",)),
        (pickle, ("expected model.safetensors, got pytorch_model.bin", "save_pretrained")),
        (newer_tokenizer, ("model: expected a tokenizer that tokenizers", "reads")),
        (list_of_labels, ("config.json: id2label: expected an object", "got list")),
        (larger_tokenizer, ("tokenizer: expected ids below", "in row 0")),
    ],
)
def test_one_line(
    run: Callable[..., Run],
    folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    parts: tuple[str, ...],
) -> None:
    damage(folder)
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\n" + VOCABULARY[-1] + "\n")
    done = run("predict", folder, rows, "--output", tmp_path / "out.tsv")
    lines = [line for line in done.err.splitlines() if line.strip() and "it/s" not in line]
    check_one_line(done._replace(err="\n".join(lines) + "\n"), *parts)
    assert not (tmp_path / "out.tsv").exists()


def test_float64_runs_in_float32(folder: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor([[2, 5, 6, 3]])
    found = FastEarlyExitEncoder(model)(ids)
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(found.logits.double(), expected, atol=1e-5, rtol=1e-5)
