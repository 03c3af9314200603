"""The table of ratios that a run of the benchmarks ends with."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from report import environment


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Medians, spreads and ratios to ours, one table a group."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[Any]] = {}
    for benchmark in session.benchmarks if session else ():
        if not benchmark.has_error:
            groups.setdefault(benchmark.group, []).append(benchmark)
    write = terminalreporter.write_line
    for group, benchmarks in groups.items():
        ours = next((b for b in benchmarks if b.extra_info.get("ours")), None)
        write("")
        write(f"{group}")
        write(f"{'':<44}{'median':>12}{'spread':>9}{'over ours':>11}  notes")
        for benchmark in sorted(benchmarks, key=lambda b: -b.stats.median):
            stats = benchmark.stats
            ratio = f"{stats.median / ours.stats.median:.2f}x" if ours else ""
            spread = f"{100 * stats.iqr / stats.median:.0f}%"
            info = benchmark.extra_info
            write(
                f"{info['row']:<44}{_duration(stats.median):>12}{spread:>9}{ratio:>11}"
                f"  {info.get('note', '')}"
            )
    if groups:
        write("")
        write(f"{environment()}; spread: interquartile range over median")


def _duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e6 * seconds:.0f} us"
