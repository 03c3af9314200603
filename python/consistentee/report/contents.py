"""What a report shows, in plain numbers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from consistentee.measures.curves import Curve

REQUIRED_METRICS = (
    "accuracy",
    "full_depth_accuracy",
    "mean_exit_layer",
    "layer_ratio",
    "num_layers",
    "rows",
    "seconds",
    "full_depth_seconds",
    "backend",
    "dtype",
    "threads",
)


@dataclass(frozen=True)
class Example:
    """One row of the test set, and how it left."""

    text: str
    label: str
    predicted: str
    exit_layer: int
    score: float


@dataclass(frozen=True)
class ScoreBin:
    """Answers whose exit scores are alike: a row counts once for each early layer it reached.

    Attributes:
        low: lowest score.
        high: highest score.
        score: mean score.
        right: share of the answers that were right, had the row left there.
        answers: how many.
        left: how many of them had a score above the threshold, and left.
    """

    low: float
    high: float
    score: float
    right: float
    answers: int
    left: int


@dataclass(frozen=True)
class ClassDepth:
    """How the rows of one class left; accuracy is a fraction of them."""

    label: str
    mean_exit_layer: float
    accuracy: float
    rows: int


@dataclass(frozen=True)
class Timing:
    """Seconds of whole passes of the engine at one threshold."""

    threshold: float
    mean_exit_layer: float
    passes: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median pass."""
        return statistics.median(self.passes)


@dataclass(frozen=True)
class Report:
    """What `consistentee.report.write.write_report` shows.

    Accuracies are fractions, layers are counted from 1, L is their number.

    Attributes:
        title: heading of the page.
        metrics: of `consistentee.evaluation.evaluate.evaluate`, at least `REQUIRED_METRICS`;
            ``full_depth_seconds`` is the Hugging Face model's time.
        curves: accuracy against mean exit layer by name, the checkpoint's own first.
        seeds: that each other curve is the mean over, where it comes from a comparison of trained
            methods; None where all have the checkpoint's weights.
        exit_histogram: rows that left at each layer, L values.
        hardness: L lists of L: rows by Memorized Layer, then by exit layer.
        reliability: by ascending score.
        classes: by ascending mean exit layer.
        timings: by ascending mean exit layer; the last is full depth.
        first_out: rows that left at the first layers.
        last_out: rows that ran the most layers.

    Raises:
        ValueError: a metric is missing, or there are not L layers.
    """

    title: str
    metrics: dict[str, Any]
    curves: dict[str, Curve]
    seeds: int | None
    exit_histogram: list[int]
    hardness: list[list[int]]
    reliability: list[ScoreBin]
    classes: list[ClassDepth]
    timings: list[Timing]
    first_out: list[Example]
    last_out: list[Example]

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED_METRICS if name not in self.metrics]
        if missing:
            raise ValueError(
                f"metrics: expected {', '.join(REQUIRED_METRICS)}, got no {', '.join(missing)}"
            )
        for name in ("exit_histogram", "hardness"):
            found = len(getattr(self, name))
            if found != self.num_layers:
                raise ValueError(f"{name}: expected {self.num_layers} layers, got {found}")

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.metrics["num_layers"])

    def mean_exit_by_hardness(self) -> list[float | None]:
        """Mean exit layer of the rows of each Memorized Layer, None where there are none."""
        return [
            sum(layer * rows for layer, rows in enumerate(counts, start=1)) / sum(counts)
            if any(counts)
            else None
            for counts in self.hardness
        ]

    def promised_seconds(self, layers: float) -> float:
        """What layers saved promise: the engine's time at full depth times ``layers / L``."""
        return self.timings[-1].seconds * layers / self.num_layers


def shorten(text: str, width: int) -> str:
    """On one line, and no longer than `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
