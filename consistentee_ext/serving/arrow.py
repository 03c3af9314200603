"""Classifies Arrow tables, for the workers of systems that hand them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from consistentee_ext.encoder import FastEarlyExitEncoder
from consistentee_ext.predictions import added_columns, prediction_columns


class ClassifyTable:
    """Called with an Arrow table, gives the table with columns of predictions, in its order.

    The columns are those of `consistentee_ext.predictions.prediction_columns`. An instance holds a
    prepacked encoder: it is made in the worker, from arguments that are text and numbers. It sorts
    a table's rows by length and cuts them into batches itself, so tables of thousands of rows are
    faster than small ones.

    Args:
        checkpoint: as for `FastEarlyExitEncoder.from_pretrained`.
        text_columns: one, or two for pairs of texts.
        options: others of `FastEarlyExitEncoder.from_pretrained`, for example ``threshold``.

    Raises:
        ValueError: not one or two columns; otherwise as `FastEarlyExitEncoder.from_pretrained`.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        text_columns: Sequence[str] = ("text",),
        **options: Any,
    ) -> None:
        if isinstance(text_columns, str) or not 1 <= len(text_columns) <= 2:
            raise ValueError(f"text_columns: expected one or two names, got {text_columns!r}")
        self._text_columns = tuple(text_columns)
        self.encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, **options)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Classify the rows of a table.

        Args:
            table: N rows.

        Raises:
            TypeError: a column of something else than text, or no table.
            ValueError: a column is missing, a text is null, or there is a column of a name that is
                added.
        """
        if not isinstance(table, pa.Table):
            raise TypeError(
                f"table: expected pyarrow.Table, got {type(table).__name__}; of Ray Data with "
                "batch_format='pyarrow'"
            )
        for name in added_columns(self.encoder.config):
            if name in table.column_names:
                raise ValueError(f"table: expected no column {name!r}, which is added, got one")
        columns = [self._texts(table, name) for name in self._text_columns]
        texts = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        found = prediction_columns(self.encoder.predict(texts), self.encoder.config)
        for name, values in found.items():
            table = table.append_column(name, pa.array(values, self._type(name)))
        return table

    def _type(self, name: str) -> pa.DataType:
        if name == "exit_layer":
            return pa.int64()
        is_number = name == "exit_score" or (
            name == "prediction" and self.encoder.config.num_labels == 1
        )
        return pa.float64() if is_number else pa.string()

    def _texts(self, table: pa.Table, name: str) -> list[str]:
        if name not in table.column_names:
            known = ", ".join(table.column_names)
            raise ValueError(f"table: expected a column {name!r}, got {known}")
        column = table[name]
        kind = column.type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (is_text or pa.types.is_string_view(kind)):
            raise TypeError(f"table: expected text in {name!r}, got {kind}")
        if column.null_count:
            raise ValueError(f"table: expected text in {name!r}, got {column.null_count} nulls")
        texts: list[str] = column.to_pylist()
        return texts
