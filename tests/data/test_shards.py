"""Folders as shards: every row is in one, whatever the format and the groups of a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.files import write

from consistentee.data import shards
from consistentee.data.shards import Shard, cut, file_rows, input_files, read_shard

ROWS = 23
IDS = [f"{number:03}" for number in range(ROWS)]  # a CSV's reader could take them for numbers
TEXTS = [f'a "film", number {number}\nof many' for number in range(ROWS)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    shards._read_group.cache_clear()


def save(path: Path, group: int = 4) -> Path:
    table = pa.table({"id": IDS, "text": TEXTS, "number": list(range(ROWS))})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group)
    elif path.suffix == ".jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([table.column_names, *rows(table)])
    return path


def rows(table: pa.Table) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("group", [1, 4, 5, 7, 100])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_shards_hold_each_row_once_in_order(tmp_path: Path, suffix: str, group: int) -> None:
    path = save(tmp_path / f"rows{suffix}", group)
    found = file_rows(path)
    assert found.rows == ROWS
    assert list(found.types) == ["id", "text", "number"]
    pieces = list(cut(path, found.rows))
    assert [(s.first_row, s.rows) for s in pieces] == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
    tables = {s: read_shard(s, ["id", "text"]) for s in pieces}
    assert [row for table in tables.values() for row in rows(table)] == list(
        zip(IDS, TEXTS, strict=True)
    )
    # In another order, as other actors take them, and with all columns.
    for shard in reversed(pieces):
        table = read_shard(shard, None)
        assert table.column_names == ["id", "text", "number"]
        assert rows(table.select(["id", "text"])) == rows(tables[shard])


def test_a_shard_has_one_name() -> None:
    assert Shard("/a/rows.csv", 16384, 5).part == "rows.csv-000000016384.parquet"
    assert Shard("/b/rows.csv", 0, 5).part < Shard("/b/rows.csv", 16384, 5).part


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.csv", "_SUCCESS", ".hidden"):
        (tmp_path / name).touch()
    assert input_files(tmp_path) == [tmp_path / "a.csv", tmp_path / "b.parquet"]
    assert input_files(tmp_path / "a.csv") == [tmp_path / "a.csv"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes.txt: expected a file, one of .tsv"):
        input_files(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "more").mkdir()
    with pytest.raises(ValueError, match="more: expected a file"):
        input_files(tmp_path)
    with pytest.raises(ValueError, match=r"more: expected a file of .*, found none"):
        input_files(tmp_path / "more")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "broken.parquet", "PAR1 no PAR1")
    with pytest.raises(ValueError, match=r"broken.parquet: expected parquet, got: "):
        file_rows(path)
