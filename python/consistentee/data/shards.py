"""A folder of files as shards: runs of rows of one file, cut the same way each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from consistentee.data.readers import FORMATS, read_rows

SHARD_ROWS = 16_384


@dataclass(frozen=True)
class FileRows:
    """What a file holds.

    Attributes:
        groups: the rows of each part that is read at once: a row group, or the whole file.
        types: of the columns, by name.
    """

    groups: tuple[int, ...]
    types: dict[str, str]

    @property
    def rows(self) -> int:
        """Of the file."""
        return sum(self.groups)


@dataclass(frozen=True)
class Shard:
    """A run of rows of a file.

    Attributes:
        file: its path.
        first_row: from 0.
        rows: how many.
    """

    file: str
    first_row: int
    rows: int

    @property
    def part(self) -> str:
        """The name of the file that has its results."""
        return f"{Path(self.file).name}-{self.first_row:012}.parquet"


def input_files(path: Path) -> list[Path]:
    """The files of a folder, by name, or a file alone.

    Names that begin with ``.`` or ``_`` are left out: systems that write folders keep notes there.

    Raises:
        ValueError: there is a folder in the folder, a file of another format, or no file.
    """
    if path.is_file():
        found = [path]
    else:
        found = sorted(child for child in path.iterdir() if child.name[0] not in "._")
    for child in found:
        if not child.is_file() or child.suffix.lower() not in FORMATS:
            raise ValueError(f"{child}: expected a file, one of {', '.join(FORMATS)}")
    if not found:
        raise ValueError(f"{path}: expected a file of {', '.join(FORMATS)}, found none")
    return [child.absolute() for child in found]


def file_rows(path: Path) -> FileRows:
    """Count a file's rows; of Parquet its footer is read, of others all of it.

    Raises:
        ValueError: a broken file, or no rows.
    """
    if path.suffix.lower() == ".parquet":
        with _parquet(path) as file:
            groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            schema = file.schema_arrow
    else:
        table = _read_whole(path)
        groups, schema = [len(table)], table.schema
    return FileRows(tuple(groups), {field.name: str(field.type) for field in schema})


def cut(path: Path, rows: int) -> Iterator[Shard]:
    """The shards of a file of so many rows."""
    for first in range(0, rows, SHARD_ROWS):
        yield Shard(str(path), first, min(SHARD_ROWS, rows - first))


def read_shard(shard: Shard, columns: Sequence[str] | None) -> pa.Table:
    """The rows of a shard.

    Args:
        shard: of a file.
        columns: some of the file's; None for all.
    """
    path, last = Path(shard.file), shard.first_row + shard.rows
    groups = file_rows(path).groups if path.suffix.lower() == ".parquet" else (last,)
    ends = list(accumulate(groups))
    taken = [
        group
        for group, (end, rows) in enumerate(zip(ends, groups, strict=True))
        if end > shard.first_row and end - rows < last
    ]
    before = ends[taken[0]] - groups[taken[0]]
    tables = [
        _read_group(path, group, None if columns is None else tuple(columns)) for group in taken
    ]
    return pa.concat_tables(tables).slice(shard.first_row - before, shard.rows)


@lru_cache(maxsize=1)  # the shards of a group come one after the other
def _read_group(path: Path, group: int, columns: tuple[str, ...] | None) -> pa.Table:
    if path.suffix.lower() == ".parquet":
        with _parquet(path) as file:
            return file.read_row_group(group, columns=None if columns is None else list(columns))
    table = _read_whole(path)
    return table if columns is None else table.select(list(columns))


def _read_whole(path: Path) -> pa.Table:
    return read_rows(path).with_format("arrow")[:]


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected parquet, got: {reason}") from None
