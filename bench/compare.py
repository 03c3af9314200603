"""Every engine on one workload, passes in turn: a table, a JSON file and a plot.

The JSON file is written after every round, so that a run that is stopped leaves its figures.

python bench/compare.py --model bert-base --text sst2 --batch-size 32
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from engines import (
    ENGINES,
    FULL,
    FULL_BF16,
    FULL_INT8,
    LIMIT,
    LIMIT_BF16,
    LIMIT_INT8,
    OURS,
    OURS_BF16,
    OURS_INT8,
)
from report import environment, print_table, save_plot
from workloads import MODELS, RUNS, TEXTS, Pass, Workload, load_workload

from consistentee.atomic_files import Json, check_writable, write_json

# What a row with exits is measured against: the same engine at full depth, and its products alone.
PARTNERS = {
    OURS: (FULL, LIMIT),
    OURS_BF16: (FULL_BF16, LIMIT_BF16),
    OURS_INT8: (FULL_INT8, LIMIT_INT8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--text", choices=TEXTS, default="sst2", help="whose lengths")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each engine")
    parser.add_argument("--only", action="append", help="an engine by name; may be given again")
    parser.add_argument("--output", type=Path, default=RUNS, help="folder of the JSON and the plot")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    workload = load_workload(options.model, options.text, options.batch_size)
    file = options.output / f"{options.model}-{options.text}-{options.batch_size}.json"
    check_writable(file)
    result = compare(
        workload,
        options.only or list(ENGINES),
        options.repeats,
        lambda part: write_json(file, part),
    )
    print_table(result)
    save_plot(file.with_suffix(".png"), result)


@torch.inference_mode()
def compare(
    workload: Workload, names: list[str], repeats: int, save: Callable[[Json], None]
) -> Json:
    """Medians, spreads and ratios of the named engines, and which of them cannot run here.

    A line is printed when an engine has run once, and after each round of all engines; `save` gets
    the result so far.
    """
    print(workload.name)
    result: Json = {
        "workload": workload.name,
        "environment": environment(),
        "rows": {},
        "absent": {},
        "repeats": 0,
    }
    passes: dict[str, Pass] = {}
    for name in names:
        start = time.perf_counter()
        try:
            passes[name] = ENGINES[name](workload)
        except ImportError as error:
            result["absent"][name] = str(error)
            print(f"{name:<44}skipped: {error}", flush=True)
            continue
        ready = time.perf_counter()
        accuracy = workload.accuracy(passes[name]())  # the first pass warms up
        first = time.perf_counter() - ready
        result["rows"][name] = {"first": first, "seconds": [], "accuracy": accuracy}
        save(result)
        print(f"{name:<44}made in {ready - start:.1f} s, first pass {first:.2f} s", flush=True)
    for number in range(1, repeats + 1):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            result["rows"][name]["seconds"].append(time.perf_counter() - start)
        result["repeats"] = number
        _summarize(result["rows"], workload)
        save(result)
        print(f"round {number} of {repeats}", flush=True)
    return result


def _summarize(rows: dict[str, Json], workload: Workload) -> None:
    """Add to each row what its seconds so far say."""
    for row in rows.values():
        seconds = row["seconds"]
        row["median"] = statistics.median(seconds)
        row["spread"] = (max(seconds) - min(seconds)) / row["median"]
    for name, (full, limit) in PARTNERS.items():
        if name in rows:
            rows[name]["layer_ratio"] = workload.layer_ratio
            if full in rows:
                saved = rows[full]["median"] / rows[name]["median"]
                rows[name]["realised_saving"] = saved / workload.layer_ratio
            if limit in rows:
                rows[name]["over_limit"] = rows[name]["median"] / rows[limit]["median"]


if __name__ == "__main__":
    main()
