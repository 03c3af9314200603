"""The demo from end to end, on few rows and a random encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.models import tiny_bert_config
from transformers import BertModel, BertTokenizer

from consistentee import demo

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "return", "the", "of", "array", "tensor"]


def test_a_model_is_trained_measured_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, output = tmp_path / "backbone", tmp_path / "demo"
    BertModel(tiny_bert_config(vocab_size=len(WORDS))).save_pretrained(backbone)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(backbone)
    monkeypatch.setattr(demo, "get_model_path", lambda: backbone)
    monkeypatch.setattr(demo, "ROWS_PER_CLASS", 20)
    monkeypatch.setattr(demo, "SETTINGS", replace(demo.SETTINGS, epochs=1, policy_epochs=1))
    metrics = demo.run_demo(output, seed=3)
    assert {path.name for path in output.iterdir()} == {
        *("data", "model", "metrics.json", "report.html", "report.png", "report.json"),
    }
    assert json.loads((output / "metrics.json").read_text()) == metrics
    # 20 rows of each library, of which a fifth are for the test.
    libraries = json.loads((output / "model" / "config.json").read_text())["id2label"]
    assert metrics["rows"] == sum(metrics["exit_histogram"]) == 4 * len(libraries)
    assert 0 <= metrics["accuracy"] <= 1
