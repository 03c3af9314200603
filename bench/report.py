"""The table and the plot of a comparison, and what it ran on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from matplotlib.figure import Figure


def environment() -> str:
    return (
        f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )


class Row(NamedTuple):
    """Of one engine: seconds of a pass, their spread over the median, and what else there is."""

    name: str
    median: float
    spread: float
    notes: str


def table(heading: str, rows: Iterable[Row], ours: float | None) -> list[str]:
    """Lines of text, slowest first; `ours` is the median that ratios are taken to."""
    lines = [heading, f"{'':<44}{'median':>12}{'spread':>9}{'over ours':>11}  notes"]
    for row in sorted(rows, key=lambda row: -row.median):
        ratio = f"{row.median / ours:.2f}x" if ours else ""
        median, spread = duration(row.median), f"{row.spread:.0%}"
        lines.append(f"{row.name:<44}{median:>12}{spread:>9}{ratio:>11}  {row.notes}")
    return lines


def print_table(result: dict[str, Any]) -> None:
    rows = result["rows"]
    ours = rows.get("ours, exits", {}).get("median")
    named = (Row(name, row["median"], row["spread"], _notes(row)) for name, row in rows.items())
    print(*table(result["workload"], named, ours), sep="\n")
    for name, reason in result["absent"].items():
        print(f"{name:<44}skipped: {reason}")
    print(
        f"{result['environment']}; medians of {result['repeats']} passes taken in turn; "
        "spread: highest less lowest over median"
    )


def _notes(row: dict[str, Any]) -> str:
    notes = [] if row["accuracy"] is None else [f"accuracy {row['accuracy']:.2%}"]
    labels = {
        "layer_ratio": "layer ratio",
        "realised_saving": "realised saving",
        "over_limit": "times the GEMM limit",
    }
    notes += [f"{label} {row[key]:.2f}" for key, label in labels.items() if key in row]
    return ", ".join(notes)


def duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e6 * seconds:.0f} us"


def save_plot(path: Path, result: dict[str, Any]) -> None:
    rows = sorted(result["rows"].items(), key=lambda item: -item[1]["median"])
    figure = Figure(figsize=(9, 0.35 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    colours = ["#22639b" if name.startswith("ours") else "#b0b0b0" for name, _ in rows]
    bars = axes.barh([name for name, _ in rows], [row["median"] for _, row in rows], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("seconds for all rows, median")
    axes.set_title(result["workload"], loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()
