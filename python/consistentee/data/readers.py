"""Reads the rows of a file, with all its columns."""

from __future__ import annotations

import csv
import glob
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.parquet.parquet import Parquet

from consistentee.atomic_files import quiet_datasets

FORMATS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
# The builders behind `load_dataset`, with options. They are called directly because `load_dataset`
# reports its use to a server.
BUILDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    ".tsv": (Csv, {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
    ".csv": (Csv, {"delimiter": ","}),
    ".parquet": (Parquet, {"batch_size": 1000}),
}
# Raised by the libraries for a broken file.
BROKEN = (
    ValueError,
    OverflowError,
    RecursionError,
    NotImplementedError,
    csv.Error,
    DatasetGenerationError,
)


def read_rows(path: Path) -> Dataset:
    """Read the columns of a file with at least one row.

    Columns of TSV and CSV are strings; those of JSON and Parquet have the types of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown suffix, a broken file, or no rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, found none")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected one of {', '.join(FORMATS)}, got {path.suffix!r}")
    try:
        if suffix != ".parquet":
            _check_utf8(path)
        rows = _read(path) if suffix in BUILDERS else _read_json(path)
    except BROKEN as error:
        if isinstance(error.__cause__, OSError):
            folder = tempfile.gettempdir()
            raise OSError(f"{folder}, the temporary folder: {error.__cause__.strerror}") from error
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{path}: expected {suffix[1:]} in UTF-8, got: {reason}") from error
    if rows is None:
        raise ValueError(f"{path}: expected at least one row, got none")
    return rows


def _check_utf8(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number}: byte {line[error.start]:#04x}") from None


def _read(path: Path) -> Dataset | None:
    """The columns as `datasets` reads them, all strings in TSV and CSV; None without rows."""
    if not path.read_bytes().strip():
        return None
    builder_class, options = BUILDERS[path.suffix.lower()]
    if builder_class is Csv:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(filter(None, csv.reader(file, **options)), [])
        for name, times in Counter(header).items():
            if times > 1:
                raise ValueError(f"{times} columns of the name {name!r}")
        # The header is read as a row: otherwise pandas takes surplus fields of it for an index.
        options = {**options, "header": None, "column_names": header, "keep_default_na": False}
        options["features"] = Features(dict.fromkeys(header, Value("string")))
    header_rows = int(builder_class is Csv)
    with tempfile.TemporaryDirectory() as cache, quiet_datasets():
        files = glob.escape(str(path.absolute()))
        builder = builder_class(data_files=files, cache_dir=cache, **options)
        builder.download_and_prepare()
        if builder.info.splits["train"].num_examples <= header_rows:
            return None
        return builder.as_dataset("train", in_memory=True).skip(header_rows)


def _read_json(path: Path) -> Dataset | None:
    """The objects of an array, or of one line each.

    The library's own reader would convert strings that look like times, and a label ``"01"`` to 1
    if other rows have numbers.
    """
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        records = json.loads(text)
    else:
        lines = enumerate(text.split("\n"), start=1)
        records = [_read_json_line(number, line) for number, line in lines if line.strip()]
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("rows that are not objects")
    if "\\u" in text:
        for number, record in enumerate(records, start=1):
            _check_characters(number, record)
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in names}
    return Dataset.from_dict(columns, on_mixed_types="use_json") if columns else None


def _check_characters(number: int, record: Any) -> None:
    """JSON can spell halves of a character, which are no text."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"row {number}: half a character, {half!r}") from None


def _read_json_line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg}") from None
