"""Arrow tables in and out, as workers of Ray and Spark call it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from support.server import save_checkpoint, texts

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import class_names
from consistentee_ext.serving.arrow import ClassifyTable


def test_columns_are_added_to_each_row(served: Path, encoder: FastEarlyExitEncoder) -> None:
    own = texts(30)
    table = pa.table({"id": list(range(30)), "text": own})
    found = ClassifyTable(served)(table)
    expected = encoder.predict(own)
    names = [class_names(encoder.config)[label] for label in expected.logits.argmax(-1).tolist()]
    assert found.select(["id", "text"]) == table
    assert found["prediction"].to_pylist() == names
    assert len(set(names)) > 1
    assert found["exit_layer"].to_pylist() == expected.exit_layers.tolist()
    assert found["exit_score"].to_pylist() == expected.exit_scores.tolist()
    assert ClassifyTable(served)(table.slice(0, 0)).schema == found.schema


def test_pairs_and_options(served: Path, encoder: FastEarlyExitEncoder) -> None:
    first, second = texts(12, seed=1), texts(12, seed=2)
    classify = ClassifyTable(served, text_columns=["a", "b"], threshold=1.0)
    found = classify(pa.table({"a": pa.array(first, pa.large_string()), "b": second}))
    full = FastEarlyExitEncoder.from_pretrained(served, threshold=1.0)
    scores = full.predict(list(zip(first, second, strict=True))).exit_scores
    assert found["exit_layer"].to_pylist() == [encoder.num_layers] * 12
    assert found["exit_score"].to_pylist() == scores.tolist()


def test_a_single_label_gives_numbers(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, classes=1)
    found = ClassifyTable(checkpoint)(pa.table({"text": texts(3)}))
    logits = FastEarlyExitEncoder.from_pretrained(checkpoint).predict(texts(3)).logits[:, 0]
    assert found["prediction"].to_pylist() == logits.sigmoid().tolist()


def test_what_is_refused(served: Path) -> None:
    with pytest.raises(ValueError, match="text_columns: expected one or two names, got 'text'"):
        ClassifyTable(served, text_columns="text")
    classify = ClassifyTable(served)
    with pytest.raises(TypeError, match=r"table: expected pyarrow.Table, got dict"):
        classify({"text": ["w5"]})
    with pytest.raises(ValueError, match="expected a column 'text', got body"):
        classify(pa.table({"body": ["w5"]}))
    with pytest.raises(TypeError, match="expected text in 'text', got int64"):
        classify(pa.table({"text": [5]}))
    with pytest.raises(ValueError, match="expected text in 'text', got 1 nulls"):
        classify(pa.table({"text": ["w5", None]}))
    with pytest.raises(ValueError, match="expected no column 'exit_layer'"):
        classify(pa.table({"text": ["w5"], "exit_layer": [1]}))
