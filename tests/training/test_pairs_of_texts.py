"""Training on pairs of texts: heads compare them, and the earlier ones learn from the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from support.models import save_backbone

from consistentee.evaluation.evaluate import load_model
from consistentee.training.phases import _distillation
from consistentee.training.prepare import train_on_splits
from consistentee.training.settings import TrainingSettings
from consistentee_ext import FastEarlyExitEncoder

WORDS = list("abcdefgh")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SETTINGS = TrainingSettings(epochs=1, policy_epochs=1, batch_size=8, bf16=False)


def tables(paired: bool, rows: int = 40) -> DatasetDict:
    generator = torch.Generator().manual_seed(0)

    def text() -> str:
        count = int(torch.randint(1, 5, (1,), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, 8, (count,), generator=generator))

    columns: dict[str, Any] = {"sentence1": [text() for _ in range(rows)]}
    if paired:
        columns["sentence2"] = [text() for _ in range(rows)]
    columns["label"] = ["yes" if row % 2 else "no" for row in range(rows)]
    table = Dataset.from_dict(columns)
    return DatasetDict({"train": table, "dev": table})


@pytest.mark.parametrize("paired", [True, False])
def test_heads_compare_where_rows_are_pairs(paired: bool, tmp_path: Path) -> None:
    save_backbone(tmp_path / "backbone", VOCABULARY)
    splits, output = tables(paired), tmp_path / "model"
    train_on_splits(tmp_path / "backbone", splits, output, SETTINGS)
    model = load_model(output)
    encoder = FastEarlyExitEncoder.from_pretrained(output, threshold=1.0)
    assert model.config.pooling == ("pair" if paired else "mean")
    assert model.config.separator_id == (encoder.tokenizer.sep_token_id if paired else None)
    assert _distillation(SETTINGS, model.config) == (1.0 if paired else 0.0)
    rows: Any = list(splits["dev"]["sentence1"])
    if paired:
        rows = list(zip(rows, splits["dev"]["sentence2"], strict=True))
    columns = [list(column) for column in zip(*rows, strict=True)] if paired else [rows]
    batch = encoder.tokenizer(*columns, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(encoder.predict(rows).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_is_asked_for_is_done(tmp_path: Path) -> None:
    save_backbone(tmp_path / "backbone", VOCABULARY)
    options: Any = {"pooling": "cls"}
    train_on_splits(tmp_path / "backbone", tables(True), tmp_path / "model", SETTINGS, **options)
    config = load_model(tmp_path / "model").config
    assert config.pooling == "cls"
    assert _distillation(TrainingSettings(distillation=0.3), config) == 0.3
