"""Loads labelled text from files: tables, splits, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from consistentee.data.labels import check_spelling, label_names, read_sets
from consistentee.data.readers import FORMATS, read_rows
from consistentee_ext.names import MULTI_LABEL, REGRESSION

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
READ_ROWS = 10_000  # of a table, at a time
SPLIT_NAMES = {"train": ("train",), "dev": ("dev", "validation", "valid"), "test": ("test",)}


def load_table(
    path: str | Path,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    problem_type: str | None = None,
) -> Dataset:
    """Read one file of labelled sentences, or of labelled pairs of sentences.

    Args:
        path: a file ``.tsv`` (no quoting), ``.csv``, ``.json``, ``.jsonl`` or ``.parquet``, UTF-8.
        text_columns: one or two columns; by default the first of `TEXT_COLUMNS` that the file has.
        label_column: integers or strings, kept as they are spelled; of sets see `read_sets`.
            Default ``labels`` for sets, else ``label``.
        problem_type: as in the model's configuration: in regression the labels are numbers, which
            may have a fraction; in multi-label classification sets.

    Returns:
        The columns ``sentence1``, for pairs ``sentence2``, and ``label``, all strings; of sets
        lists of strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown suffix, a broken file, no rows, a missing column, a column of another
            type (in JSON: integers and strings in one column), or a row without text or label.
    """
    path = Path(path)
    rows = read_rows(path)
    texts = _texts(path, rows, text_columns)
    if label_column is None:
        label_column = "labels" if problem_type == MULTI_LABEL else "label"
    check_columns(path, rows.column_names, (label_column,))
    if problem_type == MULTI_LABEL:
        return table_of(texts, read_sets(rows[label_column][:], f"{path}: {label_column}"))
    kinds: dict[str, tuple[str, ...]] = {"an integer": ("int", "uint")}
    if problem_type == REGRESSION:
        kinds = {"a number": ("int", "uint", "float", "double")}
    return table_of(texts, _strings(path, rows, label_column, kinds))


def load_texts(
    path: str | Path, text_columns: Sequence[str] | None = None
) -> tuple[Dataset, Dataset]:
    """Read one file of sentences to classify, or of pairs of sentences.

    Args:
        path: as in `load_table`.
        text_columns: as in `load_table`.

    Returns:
        All columns of the file, unchanged; and a table of ``sentence1``, for pairs ``sentence2``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `load_table`, except for labels.
    """
    path = Path(path)
    rows = read_rows(path)
    names = find_text_columns(path, rows.column_names, text_columns)
    for name in names:
        for _ in column_values(path, rows, name):  # raises
            pass
    texts = rows.select_columns(list(names))
    if len(set(names)) < len(names):  # a column beside itself
        return rows, table_of([rows[name][:] for name in names])
    return rows, texts.rename_columns(
        {name: f"sentence{number}" for number, name in enumerate(names, start=1)}
    )


def table_of(
    texts: Sequence[list[str]], labels: list[str] | list[list[str]] | None = None
) -> Dataset:
    """A table as `load_table` returns it, from columns of text, with or without labels."""
    columns = {f"sentence{number}": column for number, column in enumerate(texts, start=1)}
    if labels is None:
        return Dataset.from_dict(columns)
    return Dataset.from_dict({**columns, "label": labels})


def load_splits(
    paths: Sequence[str | Path],
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    problem_type: str | None = None,
) -> DatasetDict:
    """Read ``train``, ``dev`` and, if there is one, ``test``, each with `load_table`.

    Args:
        paths: one folder with the files train, dev (or validation, valid) and, optionally, test; or
            the two or three files themselves, in that order.
        text_columns: as in `load_table`.
        label_column: as in `load_table`.
        problem_type: as in `load_table`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: as `load_table`; train or dev is missing; train has fewer than two labels; dev
            or test has a label that train does not have; single sentences in one, pairs in another;
            labels that only their spelling tells apart, see `check_spelling`.
    """
    files = _find_splits([Path(path) for path in paths])
    splits = DatasetDict(
        {
            name: load_table(path, text_columns, label_column, problem_type)
            for name, path in files.items()
        }
    )
    check_splits(splits, {name: str(path) for name, path in files.items()}, problem_type)
    return splits


def check_splits(
    splits: DatasetDict, names: Mapping[str, str], problem_type: str | None = None
) -> None:
    """Raise ValueError unless the tables fit together; `names` has their names for messages."""
    train = splits["train"]
    known = label_names(train)
    if problem_type != REGRESSION:
        check_spelling(name for table in splits.values() for name in label_names(table))
    if len(known) < 2:
        raise ValueError(f"{names['train']}: expected two labels or more, got only {known}")
    for name, table in splits.items():
        if table.column_names != train.column_names:
            raise ValueError(
                f"{names[name]}: expected {train.column_names} as in train, "
                f"got {table.column_names}"
            )
        if problem_type == REGRESSION:
            continue
        unknown = [label for label in label_names(table) if label not in known]
        if unknown:
            raise ValueError(f"{names[name]}: expected the labels of train, got {unknown} too")


def _texts(path: Path, rows: Dataset, text_columns: Sequence[str] | None) -> list[list[str]]:
    names = find_text_columns(path, rows.column_names, text_columns)
    return [_strings(path, rows, name) for name in names]


def find_text_columns(
    path: Path, columns: Sequence[str], text_columns: Sequence[str] | None
) -> Sequence[str]:
    """Those asked for, or the first of `TEXT_COLUMNS` that a file has; raises ValueError."""
    if text_columns is not None:
        if not 1 <= len(text_columns) <= 2:
            raise ValueError(f"text_columns: expected one or two names, got {list(text_columns)}")
        check_columns(path, columns, text_columns)
        return text_columns
    for names in TEXT_COLUMNS:
        if set(names) <= set(columns):
            return names
    expected = " or ".join("+".join(names) for names in TEXT_COLUMNS)
    raise ValueError(f"{path}: expected the columns {expected}, got {', '.join(columns)}")


def check_columns(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError unless a file has the columns `names`."""
    for name in names:
        if name not in columns:
            raise ValueError(f"{path}: expected a column {name!r}, got {', '.join(columns)}")


def _strings(
    path: Path, table: Dataset, column: str, or_kinds: Mapping[str, tuple[str, ...]] | None = None
) -> list[str]:
    """A column's values as strings; see `column_values`."""
    return [str(value) for value in column_values(path, table, column, or_kinds)]


def column_values(
    path: Path, table: Dataset, column: str, or_kinds: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Any]:
    """A column's values, not all in memory at once; raise if one is missing or blank.

    `or_kinds` has the kinds of values that are allowed besides strings: for each the prefixes of
    its dtypes.
    """
    kinds = or_kinds or {}
    expected = " or ".join([*kinds, "a string"]) if kinds else "text"
    dtype = getattr(table.features[column], "dtype", "nested or mixed values")
    if not ("string" in dtype or dtype.startswith(sum(kinds.values(), ()))):
        raise ValueError(f"{path}: expected {expected} in {column!r}, got {dtype}")
    row = 0
    for first in range(0, len(table), READ_ROWS):
        for value in table[column][first : first + READ_ROWS]:
            row += 1
            if value is None or not str(value).strip():
                raise ValueError(
                    f"{path}: row {row}: expected {expected} in {column!r}, got {value!r}"
                )
            yield value


def _find_splits(paths: Sequence[Path]) -> dict[str, Path]:
    if len(paths) == 1 and not paths[0].is_file():
        return _find_in_folder(paths[0])
    if not 2 <= len(paths) <= 3:
        raise ValueError(
            "data: expected a folder, or the files train, dev and perhaps test, got "
            f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
        )
    return dict(zip(SPLIT_NAMES, paths, strict=False))


def _find_in_folder(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a file or a folder, found none")
    files = {}
    for split, stems in SPLIT_NAMES.items():
        found = sorted(
            p for p in folder.iterdir() if p.suffix.lower() in FORMATS and p.stem in stems
        )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(f"{folder}: expected one file for {split}, got {names}")
        if found:
            files[split] = found[0]
        elif split != "test":
            expected = " or ".join(stems)
            raise ValueError(
                f"{folder}: expected a file named {expected} with one of the suffixes "
                f"{', '.join(FORMATS)}, found none"
            )
    return files
