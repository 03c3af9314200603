"""Predicts the rows of a folder of files on Ray, in shards that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from transformers import PreTrainedConfig

from consistentee.atomic_files import Json, naming_file, read_json, write_json
from consistentee.data.shards import FileRows, Shard, cut, file_rows, input_files, read_shard
from consistentee.data.tables import check_columns, find_text_columns
from consistentee.evaluation.kept_rows import checkpoint_version
from consistentee_ext.criteria import check_threshold
from consistentee_ext.progress import progress_bar
from consistentee_ext.serving.ray import ClassifyBatch

CPUS = 4  # of an actor: each holds a copy of the weights
RUN = "_run.json"  # what the parts are of; readers of Parquet folders leave out such names
DONE = "_SUCCESS"
PARTIAL = "_partial-"


def predict_folder(
    checkpoint: str | os.PathLike[str],
    input: str | Path,
    output: str | Path,
    *,
    address: str,
    id_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    resume: bool = False,
) -> None:
    """Write a folder of Parquet files with the rows of `input`, each once, and their predictions.

    The added columns are those of `consistentee.evaluation.predict.predict_file`. A shard of rows
    always has the same file, which appears by renaming. So what was done before a kill is done, and
    what is done twice, by a worker that outlives its driver, is the same file again.

    Args:
        checkpoint: a hub name, or a folder that is there on every node.
        input: a file or a folder of files, see `consistentee.data.shards.input_files`, there on
            every node.
        output: a folder that is there on every node.
        address: as for `ray.init`: ``local`` starts Ray on this machine, ``auto`` finds the one
            that runs here.
        id_column: the one column of `input` that the output keeps; None for all.
        text_columns: of `input`; see `consistentee.data.tables.find_text_columns`.
        threshold: None for the checkpoint's.
        alpha: of an adjustable checkpoint; None for its default.
        resume: go on where a stopped run left off, if there was one.

    Raises:
        ValueError: a file that is broken or does not fit the others, a text that is missing, or a
            stopped run's files and no `resume`, or those of another run.
    """
    if threshold is not None:
        check_threshold(threshold)
    files, output = input_files(Path(input)), Path(output)
    with _ray(address):
        found = _file_rows(files)
        names = list(find_text_columns(files[0], list(found[0].types), text_columns))
        _check_files(files, found, names, id_column)
        run = {
            "checkpoint": checkpoint_version(checkpoint, _config(checkpoint)),
            "threshold": threshold,
            "alpha": alpha,
            "text columns": names,
            "id column": id_column,
            "input": _fingerprint(files),
        }
        _open_output(output, json.loads(json.dumps(run)), resume)
        shards = [s for path, rows in zip(files, found, strict=True) for s in cut(path, rows.rows)]
        arguments = {
            "checkpoint": os.fspath(checkpoint),
            "output": str(output.absolute()),
            "text_columns": names,
            "id_column": id_column,
            "threshold": threshold,
            "alpha": alpha,
        }
        _run(shards, output, arguments)
    for path in output.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)
    with naming_file(output):
        (output / DONE).touch()


class PredictShard:
    """An actor's work: reads shards, classifies them, writes their parts.

    Args:
        checkpoint: as the others as of `predict_folder`.
        output: the folder.
        text_columns: their names.
        id_column: the column that is kept; None for all.
        threshold: None for the checkpoint's.
        alpha: None for its default.
    """

    def __init__(
        self,
        checkpoint: str,
        output: str,
        text_columns: Sequence[str],
        id_column: str | None,
        threshold: float | None,
        alpha: float | None,
    ) -> None:
        self._output = Path(output)
        self._text_columns = text_columns
        self._id_column = id_column
        self._load = partial(
            ClassifyBatch, checkpoint, text_columns=text_columns, threshold=threshold, alpha=alpha
        )
        self._classify: ClassifyBatch | None = None

    def __call__(self, shards: pa.Table) -> pa.Table:
        """Classify the shards whose part is not there.

        Args:
            shards: a row each, with the fields of `Shard`.

        Returns:
            Columns ``rows``, how many of each shard are done, and ``error``: what was wrong with
            it, or null. Raised, it would reach the driver as the text of a traceback.
        """
        found = [self._predict(Shard(**fields)) for fields in shards.to_pylist()]
        schema = pa.schema({"rows": pa.int64(), "error": pa.string()})
        return pa.Table.from_pylist(found, schema)

    def _predict(self, shard: Shard) -> Json:
        try:
            if not (self._output / shard.part).exists():
                if self._classify is None:
                    self._classify = self._load()
                self._write(shard, self._classify(self._read(shard)))
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            return {"rows": 0, "error": str(error) or type(error).__name__}
        return {"rows": shard.rows, "error": None}

    def _read(self, shard: Shard) -> pa.Table:
        columns = None
        if self._id_column is not None:
            columns = list(dict.fromkeys([self._id_column, *self._text_columns]))
        table = read_shard(shard, columns)
        for name in self._text_columns:
            for row, text in enumerate(table[name].to_pylist(), start=shard.first_row + 1):
                if text is None or not str(text).strip():
                    raise ValueError(
                        f"{shard.file}: row {row}: expected text in {name!r}, got {text!r}"
                    )
        if self._id_column is not None and table[self._id_column].null_count:
            row = table[self._id_column].is_null().to_pylist().index(True) + shard.first_row + 1
            raise ValueError(f"{shard.file}: row {row}: expected a value in {self._id_column!r}")
        return table

    def _write(self, shard: Shard, table: pa.Table) -> None:
        if self._id_column is not None:
            dropped = [name for name in self._text_columns if name != self._id_column]
            table = table.drop_columns(dropped)
        # A name of its own: two actors may write the same part.
        written = self._output / f"{PARTIAL}{uuid.uuid4().hex}"
        try:
            with naming_file(self._output / shard.part):
                pq.write_table(table, written)
                written.replace(self._output / shard.part)
        finally:
            written.unlink(missing_ok=True)


def _run(shards: list[Shard], output: Path, arguments: Json) -> None:
    there = {path.name for path in output.glob("*.parquet")}
    left = [shard for shard in shards if shard.part not in there]
    total = sum(shard.rows for shard in shards)
    done = total - sum(shard.rows for shard in left)
    if not left:
        return
    rows = ray.data.from_items([vars(s) for s in left], override_num_blocks=len(left))
    parts = rows.map_batches(
        PredictShard,
        fn_constructor_kwargs=arguments,
        batch_format="pyarrow",
        batch_size=1,
        num_cpus=_cpus_of_an_actor(),
        compute=ray.data.ActorPoolStrategy(min_size=1),
    )
    with progress_bar(total, "predict", "row", done=done) as bar:
        for part in parts.iter_rows():
            if part["error"] is not None:
                raise ValueError(part["error"])
            bar.update(part["rows"])


def _cpus_of_an_actor() -> int:
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min([CPUS, *filter(None, cpus)])


def _file_rows(files: Sequence[Path]) -> list[FileRows]:
    count = ray.remote(file_rows)
    try:
        found: list[FileRows] = ray.get([count.remote(path) for path in files])
    except ray.exceptions.RayTaskError as error:  # whose text is that of a traceback
        raise error.cause from None
    return found


def _check_files(
    files: Sequence[Path],
    found: Sequence[FileRows],
    text_columns: Sequence[str],
    id_column: str | None,
) -> None:
    """Raise ValueError where a file's columns are not those of the first one."""
    kept = list(found[0].types) if id_column is None else [id_column]
    for path, rows in zip(files, found, strict=True):
        check_columns(path, list(rows.types), [*text_columns, *kept])
        for name in kept:
            if rows.types[name] != found[0].types[name]:
                raise ValueError(
                    f"{path}: expected {found[0].types[name]} in {name!r}, as in {files[0]}, "
                    f"got {rows.types[name]}"
                )


def _open_output(output: Path, run: Json, resume: bool) -> None:
    """Make the folder, or check that what is there is of this run."""
    with naming_file(output):
        output.mkdir(parents=True, exist_ok=True)
    if not (output / RUN).exists():
        if any(output.iterdir()):
            raise ValueError(f"{output}: expected an empty folder, or one of a stopped run")
        write_json(output / RUN, run)
        return
    if not resume:
        raise ValueError(f"{output}: expected an empty folder, or --resume to go on with its run")
    found = read_json(output / RUN)
    different = [name for name in run if found.get(name) != run[name]]
    if different:
        raise ValueError(
            f"{output}: expected the files of this run, got those of one with another "
            f"{', '.join(different)}"
        )


def _fingerprint(files: Sequence[Path]) -> str:
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _config(checkpoint: str | os.PathLike[str]) -> PreTrainedConfig:
    fields, _ = PreTrainedConfig.get_config_dict(checkpoint)
    return PreTrainedConfig.from_dict({"_commit_hash": fields.get("_commit_hash")})


@contextmanager
def _ray(address: str) -> Iterator[None]:
    """Ray, while the block runs, or as it was begun by the caller."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to a server otherwise
    # What fails is raised; the rest is in Ray's own log files.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()
