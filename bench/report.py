"""The table and the plot of a comparison, and what it ran on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure


def environment() -> str:
    return (
        f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )


def print_table(result: dict[str, Any]) -> None:
    rows = result["rows"]
    ours = rows.get("ours, exits", {}).get("median")
    print(result["workload"])
    print(f"{'':<42}{'median':>10}{'spread':>8}{'over ours':>11}  notes")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["median"]):
        ratio = f"{row['median'] / ours:.2f}x" if ours else ""
        notes = [
            f"{label} {row[key]:.2f}"
            for key, label in (
                ("layer_ratio", "layer ratio"),
                ("realised_saving", "realised saving"),
                ("over_limit", "times the GEMM limit"),
            )
            if key in row
        ]
        if row["accuracy"] is not None:
            notes.insert(0, f"accuracy {row['accuracy']:.2%}")
        print(
            f"{name:<42}{row['median']:>8.3f} s{row['spread']:>8.0%}{ratio:>11}  {', '.join(notes)}"
        )
    for name, reason in result["absent"].items():
        print(f"{name:<42}skipped: {reason}")
    print(
        f"{result['environment']}; medians of {result['repeats']} passes taken in turn; "
        "spread: highest less lowest over median"
    )


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
