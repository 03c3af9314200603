"""`predict --ray` beside `predict` on the same rows and cores, in turn, in one run.

python bench/ray_overhead.py --checkpoint runs/demo/model --data runs/demo/data/test.tsv

Prints the seconds of each, of Ray's start and of the actor's, and what Ray adds to a row.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from consistentee.data.tables import load_texts
from consistentee.evaluation.predict import predict_file
from consistentee.evaluation.predict_folder import predict_folder


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def measure(checkpoint: Path, texts: list[str], counts: list[int], rounds: int) -> None:
    choose = random.Random(0)
    threads = torch.get_num_threads()
    started = seconds(partial(ray.init, "local", num_cpus=threads, log_to_driver=False))
    print(f"{threads} threads; Ray's start {started:.1f} s")
    taken: dict[int, list[tuple[float, float]]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for at in range(rounds):
            for count in counts:
                rows = {"id": list(range(count)), "text": choose.choices(texts, k=count)}
                pq.write_table(pa.table(rows), folder / "rows.parquet")
                paths = checkpoint, folder / "rows.parquet"
                alone = seconds(partial(predict_file, *paths, folder / "out.parquet"))
                output = folder / f"out-{at}-{count}"
                on_ray = seconds(partial(predict_folder, *paths, output, address="local"))
                expected = pq.read_table(folder / "out.parquet")
                if not pq.read_table(output).equals(expected):
                    raise RuntimeError("expected the same predictions, got others")
                taken.setdefault(count, []).append((alone, on_ray))
                print(f"{count} rows: predict {alone:.1f} s, on Ray {on_ray:.1f} s", flush=True)
    small, large = counts
    added = [
        ((b_ray - a_ray) / (b - a) - 1)
        for (a, a_ray), (b, b_ray) in zip(taken[small], taken[large], strict=True)
    ]
    fixed = statistics.median(on_ray - alone for alone, on_ray in taken[small])
    print(f"a row takes {statistics.median(added):+.1%} on Ray {[f'{x:+.1%}' for x in added]}")
    print(f"and a run {fixed:.1f} s more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs=2, default=[1024, 17408])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    texts = list(load_texts(given.data)[1]["sentence1"])
    measure(given.checkpoint, texts, given.rows, given.rounds)


if __name__ == "__main__":
    main()
