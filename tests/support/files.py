"""Files that tests write."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, list]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path
