"""The two plots of a report, as elements of its page and as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from consistentee.files import whole_file

if TYPE_CHECKING:
    from consistentee.report import Report

# The names are the page's CSS variables; every colour is another, for `inline_svg`.
LIGHT = {
    "paper": "#fdfdfc",
    "panel": "#f4f4f1",
    "ink": "#22262b",
    "muted": "#6a7078",
    "line": "#dcdcd8",
    "accent": "#24649c",
    "second": "#b26a2c",
}
DARK = {
    "paper": "#15181b",
    "panel": "#1e2226",
    "ink": "#e4e6e8",
    "muted": "#98a0a8",
    "line": "#343a40",
    "accent": "#74aee0",
    "second": "#d9985c",
}

Plot = Callable[[Axes, "Report", dict[str, str]], None]


def save_figure(path: str | Path, report: Report) -> None:
    """Write the two plots side by side as a PNG, whole or not at all."""
    with _style(LIGHT):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        plot_curve(left, report, LIGHT)
        plot_histogram(right, report, LIGHT)
        with whole_file(path) as partial:
            figure.savefig(partial, format="png", dpi=160, facecolor=LIGHT["paper"])


def plot_curve(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    metrics = report.metrics
    layers = range(1, len(report.layer_accuracy) + 1)
    axes.axhline(
        100 * float(metrics["full_depth_accuracy"]),
        color=colours["muted"],
        linewidth=1,
        linestyle=(0, (5, 4)),
        label="full depth",
    )
    axes.plot(
        layers,
        [100 * accuracy for accuracy in report.layer_accuracy],
        color=colours["second"],
        marker="s",
        markersize=4,
        linewidth=1.3,
        label="every row stops at this layer",
    )
    curve = sorted(report.curve)
    axes.plot(
        [layer for layer, _ in curve],
        [100 * accuracy for _, accuracy in curve],
        color=colours["accent"],
        marker="o",
        markersize=3,
        linewidth=1.8,
        label="early exit, by threshold",
    )
    axes.plot(
        [float(metrics["mean_exit_layer"])],
        [100 * float(metrics["accuracy"])],
        color=colours["accent"],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgewidth=1.8,
        linestyle="none",
        label="early exit, as measured here",
    )
    axes.set(
        title="Accuracy against depth",
        xlabel="mean exit layer (layers)",
        ylabel="accuracy (%)",
        xlim=(0.75, len(layers) + 0.25),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", frameon=False)


def plot_histogram(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    layers = range(1, len(report.exit_histogram) + 1)
    bars = axes.bar(layers, report.exit_histogram, color=colours["accent"], width=0.72)
    # Above 16 layers the counts would run into each other.
    if len(layers) <= 16:
        axes.bar_label(bars, padding=2, color=colours["muted"], fontsize=8)
    axes.set(
        title="Where rows leave", xlabel="exit layer", ylabel="rows", xlim=(0.4, len(layers) + 0.6)
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.1)
    axes.grid(visible=False, axis="x")


@contextmanager
def _style(colours: dict[str, str]) -> Iterator[None]:
    rc: dict[Any, Any] = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": colours["line"],
        "axes.labelcolor": colours["ink"],
        "axes.titlecolor": colours["ink"],
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": colours["line"],
        "grid.linewidth": 0.6,
        "legend.fontsize": 8,
        "legend.labelcolor": colours["ink"],
        "text.color": colours["ink"],
        "xtick.color": colours["muted"],
        "ytick.color": colours["muted"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(rc):
        yield


def inline_svg(plot: Plot, report: Report) -> str:
    """A plot as an SVG element whose colours are the page's variables, so that it turns dark."""
    with _style(LIGHT), matplotlib.rc_context({"svg.hashsalt": plot.__name__}):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        plot(figure.subplots(), report, LIGHT)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The names of groups repeat from plot to plot; ids must be unique in a page.
    svg = re.sub(r'<g id="[^"]*"', "<g", re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S))
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
