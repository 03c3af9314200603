"""Results of rows as they come, in a file beside the output, so that a stopped run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from consistentee.atomic_files import Json, naming_file


class KeptRows:
    """Columns of values in ``<output>.resume``: a line about the run, then a JSON array a row.

    There is no file before there is a row.

    Args:
        output: the file that the rows are for.
        run: all that determines the values, as JSON values.
        total: the number of rows, for messages.
        resume: whether to go on where an earlier run stopped.

    Raises:
        ValueError: there is such a file, and `resume` is False or it is of another run.
    """

    def __init__(self, output: Path, run: Json, total: int, resume: bool) -> None:
        self.path = output.with_name(output.name + ".resume")
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # a kill may cut the last one
        self.number = max(len(whole) - 1, 0)
        self._run = run
        if not self.number:
            return
        if not resume:
            raise ValueError(
                f"{self.path}: expected none, or --resume; it has {self.number} of {total} rows of "
                "a run that was stopped; remove it to start again"
            )
        self._check_run(run, json.loads(whole[0]))
        with naming_file(self.path):
            self.path.write_bytes(b"".join(whole))

    def _check_run(self, run: Json, found: Json) -> None:
        different = [name for name in run if found.get(name) != run[name]]
        if different:
            raise ValueError(
                f"{self.path}: expected rows of this run, got those of one with another "
                f"{', '.join(different)}"
            )

    def append(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add rows, of the same columns each time."""
        rows = list(zip(*columns.values(), strict=True))
        lines: list[Any] = rows if self.number else [self._run, *rows]
        mode = "a" if self.number else "w"
        with naming_file(self.path), self.path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self.number += len(rows)

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """All rows so far."""
        columns: dict[str, list[Any]] = {name: [] for name in names}
        with self.path.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                for column, value in zip(columns.values(), json.loads(line), strict=True):
                    column.append(value)
        return columns

    def remove(self) -> None:
        """Remove the file, when the output is there."""
        self.path.unlink()


def checkpoint_version(checkpoint: str | os.PathLike[str], config: PreTrainedConfig) -> Json:
    """What tells one state of a checkpoint from another: a hub's commit, the files of a folder."""
    files = sorted(path for path in Path(checkpoint).glob("*") if path.is_file())
    return {
        "commit": getattr(config, "_commit_hash", None),
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }
