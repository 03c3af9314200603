"""`predict --ray`: shards appear whole, each once, through kills and nodes that come and go."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.server import save_checkpoint, texts

from consistentee import cli
from consistentee.data import shards
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import class_names

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from consistentee.evaluation import predict_folder as module  # noqa: E402
from consistentee.evaluation.predict_folder import PredictShard, predict_folder  # noqa: E402

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
SHARD = 25
# The driver cuts the shards, so that a small number of rows is many of them.
COMMAND = (
    "import consistentee.data.shards as shards; from consistentee.cli import main;"
    f"shards.SHARD_ROWS = {SHARD}; main()"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("ray") / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows in files of each format; ids that no format's reader may change."""
    return save_folder(tmp_path / "in", rows=90)


def save_folder(folder: Path, rows: int) -> Path:
    folder.mkdir()
    names, own = ids(rows), texts(rows)
    third = rows // 3
    pq.write_table(
        pa.table({"id": names[:third], "text": own[:third], "note": own[:third]}),
        folder / "a.parquet",
        row_group_size=40,
    )
    lines = [f"{i},{t},note\n" for i, t in list(zip(names, own, strict=True))[third : 2 * third]]
    (folder / "b.csv").write_text("id,text,note\n" + "".join(lines))
    (folder / "c.jsonl").write_text(
        "".join(
            json.dumps({"id": i, "text": t, "note": None}) + "\n"
            for i, t in list(zip(names, own, strict=True))[2 * third :]
        )
    )
    return folder


def ids(rows: int) -> list[str]:
    return [f"{number:07}" for number in range(rows)]


def expected(checkpoint: Path, rows: int) -> list[tuple[str, str, int, float]]:
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint)
    found = encoder.predict(texts(rows))
    labels = [class_names(encoder.config)[label] for label in found.logits.argmax(-1).tolist()]
    return list(
        zip(ids(rows), labels, found.exit_layers.tolist(), found.exit_scores.tolist(), strict=True)
    )


def read(output: Path) -> list[tuple[str, str, int, float]]:
    """All rows, by id; the folder is read as any reader would."""
    table = pq.read_table(output)
    assert table.column_names == ["id", "prediction", "exit_layer", "exit_score"]
    return sorted(tuple(row.values()) for row in table.to_pylist())


def worker(checkpoint: Path, output: Path, **arguments: Any) -> PredictShard:
    output.mkdir(exist_ok=True)
    options: dict[str, Any] = {"text_columns": ["text"], "id_column": "id"} | arguments
    return PredictShard(
        checkpoint=str(checkpoint), output=str(output), threshold=None, alpha=None, **options
    )


def pieces(folder: Path) -> list[dict[str, Any]]:
    return [
        vars(shard)
        for path in shards.input_files(folder)
        for shard in shards.cut(path, shards.file_rows(path).rows)
    ]


def test_an_actor_writes_each_part_once(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", SHARD)
    output = tmp_path / "out"
    predict = worker(checkpoint, output)
    given = pa.Table.from_pylist(pieces(folder))
    assert predict(given).to_pylist() == [
        {"rows": n, "error": None} for n in given["rows"].to_pylist()
    ]
    assert read(output) == expected(checkpoint, 90)
    names = sorted(path.name for path in output.iterdir())
    assert names == sorted(shards.Shard(**piece).part for piece in given.to_pylist())
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    worker(checkpoint, output)(given)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_without_ids_all_columns_are_kept(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    worker(checkpoint, output, id_column=None)(pa.Table.from_pylist(pieces(folder)[:1]))
    table = pq.read_table(output)
    assert table.column_names == ["id", "text", "note", "prediction", "exit_layer", "exit_score"]
    assert table["text"].to_pylist() == texts(90)[:30]


def test_a_failed_write_leaves_nothing(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = worker(checkpoint, tmp_path / "out")

    def stop(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.pq, "write_table", stop)
    (done,) = predict(pa.Table.from_pylist(pieces(folder)[:1])).to_pylist()
    assert done["rows"] == 0
    assert re.search(r"No space left on device: .*a.parquet-000000000000.parquet", done["error"])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            {"id": [1, 2], "text": ["w5", " "]},
            r"x.parquet: row 2: expected text in 'text', got ' '",
        ),
        ({"id": [1, 2], "text": [None, "w5"]}, r"x.parquet: row 1: expected text .* got None"),
        ({"id": [1, None], "text": ["w5", "w6"]}, r"x.parquet: row 2: expected a value in 'id'"),
    ],
)
def test_a_row_that_cannot_be_classified_is_named(
    checkpoint: Path, tmp_path: Path, columns: dict[str, list[Any]], line: str
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    (done,) = worker(checkpoint, tmp_path / "out")(pa.Table.from_pylist(pieces(path))).to_pylist()
    assert done["rows"] == 0
    assert re.search(line, done["error"])
    assert list((tmp_path / "out").iterdir()) == []


def test_mistakes_that_need_no_ray(
    checkpoint: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["consistentee", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    given = (checkpoint, folder, "--output", tmp_path / "out")
    assert "id-column: expected --ray beside it" in said(*given, "--id-column", "id")
    assert "threshold: expected a number in (0, 1], got 2.0" in said(
        *given, "--ray", "local", "--threshold", 2
    )
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()


def test_the_package_imports_no_ray() -> None:
    code = (
        "import sys, consistentee, consistentee_ext, consistentee.cli; print('ray' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"False\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node with one CPU, to which others can be added."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_folder_on_ray(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", SHARD)
    output = tmp_path / "out"

    def predict(checkpoint: Path = checkpoint, input: Path = folder, **options: Any) -> None:
        predict_folder(checkpoint, input, output, address="local", **options)

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.jsonl").write_text('{"id": 1, "text": "w5"\n')
    with pytest.raises(ValueError, match=r"^\S*x.jsonl: expected jsonl in UTF-8, got: line 1"):
        predict(input=broken)
    (broken / "x.jsonl").write_text('{"id": 1, "text": "w5"}\n')
    (broken / "y.jsonl").write_text('{"id": "1", "text": "w5"}\n')
    with pytest.raises(ValueError, match=r"y.jsonl: expected int64 in 'id', as in .*x.jsonl, got"):
        predict(input=broken, id_column="id")
    (broken / "y.jsonl").write_text('{"id": 2, "body": "w5"}\n')
    with pytest.raises(ValueError, match=r"y.jsonl: expected a column 'text', got id, body"):
        predict(input=broken, id_column="id")
    assert not output.exists()
    (broken / "y.jsonl").write_text('{"id": 2, "text": ""}\n')
    with pytest.raises(ValueError, match=r"^\S*y.jsonl: row 1: expected text in 'text', got ''"):
        predict_folder(checkpoint, broken, tmp_path / "none", address="local", id_column="id")
    assert not (tmp_path / "none" / "_SUCCESS").exists()

    predict(id_column="id")
    assert read(output) == expected(checkpoint, 90)
    assert (output / "_SUCCESS").exists()
    with pytest.raises(ValueError, match="expected an empty folder, or --resume"):
        predict(id_column="id")
    with pytest.raises(ValueError, match="one with another threshold"):
        predict(id_column="id", threshold=0.5, resume=True)

    gone = next(output.glob("b.csv*"))
    written = gone.read_bytes()
    gone.unlink()
    (output / "_partial-of-a-kill").write_bytes(b"PAR1")
    predict(id_column="id", resume=True)
    assert gone.read_bytes() == written
    assert not (output / "_partial-of-a-kill").exists()
    assert read(output) == expected(checkpoint, 90)

    (folder / "d.csv").write_text("id,text,note\n9,w5 w6,x\n")
    with pytest.raises(ValueError, match="one with another input"):
        predict(id_column="id", resume=True)
    (output / "_run.json").unlink()
    with pytest.raises(ValueError, match="expected an empty folder, or one of a stopped run"):
        predict(id_column="id", resume=True)


def actors(session: int) -> list[int]:
    """Processes of actors that a driver's Ray has begun: of its session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_bytes()
            if b"MapWorker" in name and os.getsid(int(path.name)) == session:
                found.append(int(path.name))
        except OSError:  # it has ended
            pass
    return found


@pytest.mark.slow
def test_a_node_comes_and_goes(
    checkpoint: Path, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(PredictShard):  # so that nodes have time to come and go
        def __call__(self, shards: pa.Table) -> pa.Table:
            time.sleep(0.2)
            return super().__call__(shards)

    monkeypatch.setattr(shards, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(module, "PredictShard", Slow)
    rows = 3600
    folder, output = save_folder(tmp_path / "in", rows), tmp_path / "out"

    def predict() -> None:
        predict_folder(checkpoint, folder, output, address=cluster.address, id_column="id")

    with ThreadPoolExecutor(1) as pool:
        predicting = pool.submit(predict)
        wait_for(lambda: list(output.glob("*.parquet")), lambda: not predicting.done())
        node = cluster.add_node(num_cpus=1)
        wait_for(lambda: len(actors(os.getsid(0))) == 2, lambda: not predicting.done())
        cluster.remove_node(node, allow_graceful=False)
        assert not predicting.done()
        predicting.result()
    assert read(output) == expected(checkpoint, rows)


@pytest.mark.slow
def test_kills_at_random(checkpoint: Path, tmp_path: Path) -> None:
    rows, choose = 4000, random.Random(4)
    folder, output = save_folder(tmp_path / "in", rows), tmp_path / "out"
    command = [sys.executable, "-c", COMMAND, "predict", str(checkpoint), str(folder)]
    command += ["--output", str(output), "--ray", "local", "--id-column", "id", "--resume"]

    def has_parts(least: int) -> bool:
        return len(list(output.glob("*.parquet"))) >= least

    kills = sorted(choose.sample(range(10, rows // SHARD - 10), 6))
    targets = choose.sample(["driver", "actor"] * 3, 6)
    driver = start(command)

    def alive() -> bool:
        return driver.poll() is None

    for kill, target in zip(kills, targets, strict=True):
        wait_for(partial(has_parts, kill), alive)
        if target == "actor":
            wait_for(partial(actors, driver.pid), alive)
            os.kill(choose.choice(actors(driver.pid)), signal.SIGKILL)
        else:
            driver.kill()
            driver.communicate()
            driver = start(command)  # at once, while actors of the other may still be at work
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert "Traceback" not in said
    assert read(output) == expected(checkpoint, rows)
    assert sorted(p.name for p in output.iterdir() if p.name[0] == "_") == ["_SUCCESS", "_run.json"]


def start(command: list[str]) -> subprocess.Popen[str]:
    """In a session of its own, to which all that Ray begins belongs."""
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(holds: Callable[[], object], alive: Callable[[], bool]) -> None:
    last = time.monotonic() + 120
    while not holds():
        assert alive()
        assert time.monotonic() < last
        time.sleep(0.01)
