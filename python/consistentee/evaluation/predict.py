"""Predicts the rows of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from consistentee.atomic_files import check_table, write_table
from consistentee.data.fingerprint import fingerprint
from consistentee.data.tables import READ_ROWS, load_texts
from consistentee.evaluation.kept_rows import KeptRows, checkpoint_version
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.predictions import added_columns, prediction_columns


def predict_file(
    checkpoint: str | os.PathLike[str],
    input: str | Path,
    output: str | Path,
    text_columns: Sequence[str] | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    resume: bool = False,
) -> None:
    """Write a file with the columns of `input` and ``prediction``, ``exit_layer``, ``exit_score``.

    Of a set of labels the prediction has the names joined by ``|``, and a fourth column ``scores``
    a JSON object, each label's probability. Of a single label it is the label's probability, in
    regression the number.

    Until it is whole, the results are kept in ``<output>.resume``.

    Args:
        checkpoint: a folder or hub name.
        input: see `consistentee.data.tables.load_texts`; without columns of these names.
        output: its suffix decides the format.
        text_columns: of `input`.
        threshold: None for the checkpoint's.
        alpha: of an adjustable checkpoint; None for its default.
        resume: go on with the results that a stopped run left, if there are any.

    Raises:
        ValueError: as `load_texts`, or a stopped run left results and `resume` is False.
    """
    check_table(output)
    rows, table = load_texts(input, text_columns)
    check_table(output, rows)
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, threshold=threshold, alpha=alpha)
    names = added_columns(encoder.config)
    taken = [name for name in names if name in rows.column_names]
    if taken:
        raise ValueError(f"input: expected no column {taken[0]!r}, which the output adds, got one")
    run = {
        "checkpoint": checkpoint_version(checkpoint, encoder.config),
        "threshold": encoder.threshold,
        "alpha": encoder.alpha,
        "dtype": str(encoder.dtype),
        "input": fingerprint(table, table.column_names),
    }
    kept = KeptRows(Path(output), json.loads(json.dumps(run)), len(table), resume)
    windows = encoder.predict_windows(Texts(table), show_progress_bar=True, first_row=kept.number)
    with closing(windows) as parts:
        for part in parts:
            kept.append(prediction_columns(part, encoder.config))
    predictions = Dataset.from_dict(kept.columns(names))
    write_table(output, concatenate_datasets([rows, predictions], axis=1))
    kept.remove()


class Texts(Sequence[Any]):
    """The texts of a table, or its pairs of texts, read when they are asked for.

    As a list they would take several times the memory of the table.
    """

    def __init__(self, table: Dataset) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int | slice) -> Any:
        rows = self.table[index]
        if "sentence2" not in rows:
            return rows["sentence1"]
        first, second = rows["sentence1"], rows["sentence2"]
        return (first, second) if isinstance(index, int) else list(zip(first, second, strict=True))

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, len(self), READ_ROWS):
            yield from self[first : first + READ_ROWS]
