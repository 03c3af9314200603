"""The table of ratios that a run of the benchmarks ends with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import torch
from report import Row, duration, environment, table
from workloads import RUNS

FIGURES = RUNS / "figures.jsonl"


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))


@pytest.fixture(autouse=True)
def print_and_keep(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[None]:
    """Each figure as it is measured; a run that is stopped leaves them in `FIGURES`."""
    yield
    if benchmark.stats is None:  # skipped, or --benchmark-disable
        return
    stats, info = benchmark.stats.stats, benchmark.extra_info
    line = {"group": benchmark.group, "row": info["row"], "median": stats.median, "iqr": stats.iqr}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    with FIGURES.open("a") as file:
        file.write(json.dumps({"at": datetime.now().isoformat(timespec="seconds"), **line}) + "\n")
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    assert terminal is not None
    terminal.write_line(f" {info['row']}: {duration(stats.median)}")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Medians, spreads and ratios to ours, one table a group."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[Any]] = {}
    for benchmark in session.benchmarks if session else ():
        if not benchmark.has_error:
            groups.setdefault(benchmark.group, []).append(benchmark)
    write = terminalreporter.write_line
    for group, benchmarks in groups.items():
        ours = next((b.stats.median for b in benchmarks if b.extra_info.get("ours")), None)
        rows = [
            Row(
                b.extra_info["row"],
                b.stats.median,
                b.stats.iqr / b.stats.median,
                b.extra_info.get("note", ""),
            )
            for b in benchmarks
        ]
        for line in ("", *table(group, rows, ours)):
            write(line)
    if groups:
        write("")
        write(f"{environment()}; spread: interquartile range over median")
