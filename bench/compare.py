"""Every engine on one workload, passes in turn: a table, a JSON file and a plot.

python bench/compare.py --model bert-base --text sst2 --batch-size 32
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from engines import ENGINES, FULL, FULL_BF16, LIMIT, LIMIT_BF16, OURS, OURS_BF16
from report import environment, print_table, save_plot
from workloads import MODELS, RUNS, TEXTS, Pass, Workload, load_workload

from consistentee.evaluation.evaluate import time_passes

# What a row with exits is measured against: the same engine at full depth, and its products alone.
PARTNERS = {OURS: (FULL, LIMIT), OURS_BF16: (FULL_BF16, LIMIT_BF16)}


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
    result = compare(workload, options.only or list(ENGINES), options.repeats)
    print_table(result)
    name = f"{options.model}-{options.text}-{options.batch_size}"
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{name}.json").write_text(json.dumps(result, indent=2))
    save_plot(options.output / f"{name}.png", result)


@torch.inference_mode()
def compare(workload: Workload, names: list[str], repeats: int) -> dict[str, Any]:
    """Medians, spreads and ratios of the named engines, and which of them cannot run here."""
    passes: dict[str, Pass] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            passes[name] = ENGINES[name](workload)
        except ImportError as error:
            absent[name] = str(error)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "median": statistics.median(seconds),
            "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
            "seconds": seconds,
        }
        for name, seconds in time_passes(passes, repeats).items()
    }
    for name, run in passes.items():
        rows[name]["accuracy"] = workload.accuracy(run())
    for name, (full, limit) in PARTNERS.items():
        if name in rows:
            rows[name]["layer_ratio"] = workload.layer_ratio
            if full in rows:
                saved = rows[full]["median"] / rows[name]["median"]
                rows[name]["realised_saving"] = saved / workload.layer_ratio
            if limit in rows:
                rows[name]["over_limit"] = rows[name]["median"] / rows[limit]["median"]
    return {
        "workload": workload.name,
        "environment": environment(),
        "rows": rows,
        "absent": absent,
        "repeats": repeats,
    }


if __name__ == "__main__":
    main()
