"""The numbers that a report shows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from consistentee.atomic_files import Json
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
    """One row of the test set: its answer, and where it left."""

    text: str
    label: str
    predicted: str
    exit_layer: int
    score: float


@dataclass(frozen=True)
class ScoreBin:
    """A bin of answers with similar exit scores; a row has one at each early layer it reached.

    Attributes:
        low: lowest score.
        high: highest score.
        score: mean score.
        right: share of the answers that are right.
        answers: number of answers.
        left: number of answers with which a row left, because their score is above the threshold.
    """

    low: float
    high: float
    score: float
    right: float
    answers: int
    left: int


@dataclass(frozen=True)
class ClassDepth:
    """Depth and accuracy of the rows of one class; accuracy is in [0, 1]."""

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
        """The median of the passes."""
        return statistics.median(self.passes)


@dataclass(frozen=True)
class Report:
    """All that `consistentee.report.write.write_report` shows.

    Accuracies are in [0, 1]; layers are counted from 1; L is their number.

    Attributes:
        title: heading of the page.
        metrics: of `consistentee.evaluation.evaluate.evaluate`, at least `REQUIRED_METRICS`;
            ``full_depth_seconds`` is the Hugging Face model's time.
        curves: accuracy against mean exit layer by name, the checkpoint's own first.
        seeds: number of seeds that each other curve is the mean over, if they come from a
            comparison of trained methods; None if all curves are of the checkpoint's weights.
        exit_histogram: number of rows that left at each layer, L values.
        hardness: L lists of L: number of rows by Memorized Layer, then by exit layer.
        reliability: by ascending score.
        failure_auroc: of layers 1 to L - 1, see `consistentee.measures.curves.failure_auroc`.
        classes: by ascending mean exit layer.
        timings: by ascending mean exit layer; the last is full depth.
        first_out: rows that left at the first layers.
        last_out: rows that ran the most layers.

    Raises:
        ValueError: a metric is missing, or there are not L layers.
    """

    title: str
    metrics: Json
    curves: dict[str, Curve]
    seeds: int | None
    exit_histogram: list[int]
    hardness: list[list[int]]
    reliability: list[ScoreBin]
    failure_auroc: list[float | None]
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
        """Mean exit layer of the rows of each Memorized Layer, None if there are none."""
        return [
            sum(layer * rows for layer, rows in enumerate(counts, start=1)) / sum(counts)
            if any(counts)
            else None
            for counts in self.hardness
        ]

    def promised_seconds(self, layers: float) -> float:
        """Seconds in proportion to layers: the engine's time at full depth times ``layers / L``."""
        return self.timings[-1].seconds * layers / self.num_layers


def shorten(text: str, width: int) -> str:
    """The text on one line, cut to at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
