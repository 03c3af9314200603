"""Files that are written completely or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from pyarrow.compute import any as any_of
from pyarrow.compute import match_substring_regex
from safetensors import SafetensorError

Json = dict[str, Any]  # the object in a JSON file


def check_writable(path: str | Path) -> None:
    """Make the folder of a file that will be written; raise OSError now if that is impossible."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path}: expected a folder that can be written, got {folder}")


_quiet_lock = threading.Lock()


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silence the progress bars and log lines of `datasets`; its exceptions have the same facts."""
    with _quiet_lock, ExitStack() as stack:
        stack.callback(datasets.logging.set_verbosity, datasets.logging.get_verbosity())
        if not datasets.are_progress_bars_disabled():
            stack.callback(datasets.enable_progress_bars)
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        datasets.disable_progress_bars()
        yield


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to: renamed to `path` if the block succeeds, removed if it raises."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with naming_file(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Raise an OSError that names the file or folder where a disk is full, as libraries do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise  # not of torch's writer
        free = shutil.disk_usage(Path(path).parent).free / 1e6
        raise OSError(f"{path}: cannot be written, {free:,.0f} MB free: {error}") from error


def write_json(path: str | Path, content: Json) -> None:
    """Write a JSON file."""
    with whole_file(path) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Json:
    """Read the object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content is not a JSON object.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: expected a file, found none")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def check_table(path: str | Path, table: Dataset | None = None) -> None:
    """Raise now if `write_table` does not know the suffix, or cannot write there or this table."""
    suffix = Path(path).suffix
    if suffix.lower() not in _WRITERS:
        raise ValueError(f"{path}: expected one of {', '.join(_WRITERS)}, got {suffix!r}")
    check_writable(path)
    if table is not None and suffix.lower() == ".tsv":
        for name, feature in table.features.items():
            breaks = getattr(feature, "dtype", "") == "string" and match_substring_regex(
                table.data.column(name), "[\\t\\r\\n]"
            )
            if breaks and any_of(breaks).as_py():
                raise ValueError(f"{path}: {_TSV_TEXT}")


_TSV_TEXT = "expected no tab or line break in a TSV's text; write .csv or .jsonl"


def write_table(path: str | Path, table: Dataset) -> None:
    """Write a table as TSV (no quoting), CSV, JSONL or Parquet, chosen by the suffix.

    Raises:
        ValueError: an unknown suffix, or text with a tab or line break in a TSV.
    """
    check_table(path)
    try:
        with quiet_datasets(), whole_file(path) as partial:
            _WRITERS[Path(path).suffix.lower()](table, partial)
    except csv.Error:
        raise ValueError(f"{path}: {_TSV_TEXT}") from None


def _write_tsv(table: Dataset, path: Path) -> None:
    table.to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_NONE)


_WRITERS: dict[str, Callable[[Dataset, Path], object]] = {
    ".tsv": _write_tsv,
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".jsonl": lambda table, path: table.to_json(path, force_ascii=False),
    ".parquet": lambda table, path: table.to_parquet(path),
}
