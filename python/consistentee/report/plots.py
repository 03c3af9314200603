"""The plots of a report."""

from __future__ import annotations

from itertools import cycle, product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from consistentee.report.contents import Report, shorten
from consistentee.report.style import LIGHT, SIZE, Plot, style

# With more layers numbers would overlap.
NUMBERED_LAYERS = 16
CLASSES_AT_AN_END = 10
LINE_STYLES = ("solid", (0, (4, 2)), (0, (1, 1.5)))
SERIES = ("second", "third", "fourth", "fifth", "sixth")


def save_figure(path: str | Path, report: Report) -> None:
    """Write all plots in two columns as a PNG."""
    with style(LIGHT):
        rows = -(-len(PLOTS) // 2)
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
        figure = Figure(figsize=(2 * SIZE[0], rows * SIZE[1]), layout=layout)
        for axes, plot in zip(figure.subplots(rows, 2).flat, PLOTS, strict=True):
            plot(axes, report, LIGHT)
        figure.savefig(path, format="png", dpi=160, facecolor=LIGHT["paper"])


def plot_curves(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """Accuracy against mean exit layer: the checkpoint's curve and those it is compared with."""
    metrics = report.metrics
    own, *others = report.curves
    _draw_curve(axes, report, own, color=colours["accent"], linewidth=2.2, zorder=3)
    axes.plot(
        [metrics["mean_exit_layer"]],
        [100 * metrics["accuracy"]],
        color=colours["accent"],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgewidth=1.8,
        linestyle="none",
        label="as measured here",
        zorder=3,
    )
    looks = cycle((colours[name], dashes) for dashes in LINE_STYLES for name in SERIES)
    for name in others:
        colour, dashes = (colours["muted"], (0, (5, 3))) if name == "oracle" else next(looks)
        _draw_curve(axes, report, name, color=colour, linestyle=dashes, linewidth=1.2)
    _by_layer(axes, report)
    axes.set(title="Accuracy against depth", xlabel="mean exit layer", ylabel="accuracy (%)")
    _legend_below(axes)


def _draw_curve(axes: Axes, report: Report, name: str, **look: Any) -> None:
    curve = report.curves[name]
    axes.plot(curve.layers, [100 * accuracy for accuracy in curve.accuracy], label=name, **look)


def plot_histogram(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """Rows that leave at each layer."""
    layers = range(1, report.num_layers + 1)
    bars = axes.bar(layers, report.exit_histogram, color=colours["accent"], width=0.72)
    if report.num_layers <= NUMBERED_LAYERS:
        axes.bar_label(bars, padding=2, color=colours["muted"], fontsize=8)
    _by_layer(axes, report)
    axes.set(title="Where rows leave", xlabel="exit layer", ylabel="rows")
    axes.margins(y=0.1)
    axes.grid(visible=False, axis="x")


def plot_hardness(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """Where the rows of each Memorized Layer leave: share at each layer, and mean exit layer."""
    layers = range(1, report.num_layers + 1)
    for memorized, left in product(layers, layers):
        column = report.hardness[memorized - 1]
        if column[left - 1]:
            share = column[left - 1] / max(column)
            axes.add_patch(
                Rectangle(
                    (memorized - 0.46, left - 0.46),
                    0.92,
                    0.92,
                    facecolor=colours["accent"],
                    alpha=0.08 + 0.77 * share,
                    linewidth=0,
                    zorder=0.5,
                )
            )
    axes.plot(
        [1, report.num_layers],
        [1, report.num_layers],
        color=colours["muted"],
        linestyle=(0, (1, 2)),
        linewidth=1.2,
        label="leaves at its Memorized Layer",
    )
    means = [
        (memorized, mean)
        for memorized, mean in zip(layers, report.mean_exit_by_hardness(), strict=True)
        if mean is not None
    ]
    axes.plot(
        [memorized for memorized, _ in means],
        [mean for _, mean in means],
        color=colours["second"],
        marker="o",
        markersize=5,
        linewidth=1.4,
        label="mean exit layer",
    )
    _by_layer(axes, report)
    numbered = report.num_layers <= NUMBERED_LAYERS
    if numbered:
        rows_of = [f"{layer}\n{_count(sum(report.hardness[layer - 1]))}" for layer in layers]
        axes.set_xticks(list(layers), rows_of, fontsize=8)
    axes.set_xlabel("Memorized Layer, and rows that have it" if numbered else "Memorized Layer")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title="Hardness against exit layer", ylabel="exit layer", ylim=axes.get_xlim())
    axes.grid(visible=False)
    _legend_below(axes, tick_lines=2 if numbered else 1)


def plot_reliability(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """How often the answer is right, by exit score."""
    bins = report.reliability
    places = range(len(bins))
    axes.bar(
        places,
        [100 * each.right for each in bins],
        color=colours["accent"],
        width=0.8,
        label="answers that are right",
    )
    axes.plot(
        places,
        [100 * each.score for each in bins],
        color=colours["second"],
        marker="o",
        markersize=5,
        linewidth=1.4,
        label="mean score",
    )
    staying = sum(1 - each.left / each.answers for each in bins)
    axes.axvline(
        staying - 0.5,
        color=colours["ink"],
        linewidth=1,
        linestyle=(0, (5, 3)),
        label="threshold: rows leave on the right",
    )
    axes.set_xticks(
        list(places), [f"{each.score:.2f}\n{_count(each.answers)}" for each in bins], fontsize=8
    )
    axes.set(
        title="Reliability of the exit score",
        xlabel="mean exit score of a bin, and its answers",
        ylabel="right (%)",
        ylim=(0, 105),
    )
    axes.grid(visible=False, axis="x")
    _legend_below(axes, tick_lines=2)


def plot_classes(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """Mean exit layer of each class; if there are many, of the shallowest and the deepest."""
    shown: list[tuple[int, int]] = [(place, place) for place in range(len(report.classes))]
    gap = None
    if len(shown) > 2 * CLASSES_AT_AN_END:
        gap = CLASSES_AT_AN_END
        deepest = shown[-CLASSES_AT_AN_END:]
        shown = shown[:gap] + [(gap + 1 + i, number) for i, (_, number) in enumerate(deepest)]
    places = [place for place, _ in shown]
    classes = [report.classes[number] for _, number in shown]
    bars = axes.barh(
        places, [each.mean_exit_layer for each in classes], color=colours["accent"], height=0.72
    )
    texts = [f"{each.accuracy:.0%} of {each.rows}" for each in classes]
    axes.bar_label(bars, texts, padding=3, color=colours["muted"], fontsize=7)
    names = [shorten(each.label, 22) for each in classes]
    ticks = dict(zip(places, names, strict=True)) | ({} if gap is None else {gap: "…"})
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=8 if len(ticks) <= 12 else 7)
    axes.set(
        title="How deep classes go, and their accuracy",
        xlabel="mean exit layer",
        xlim=(0, 1.18 * report.num_layers),
        ylim=(max(places) + 0.6, -0.6),
    )
    ticks_of = MaxNLocator(integer=True).tick_values(0, report.num_layers)
    axes.set_xticks([layer for layer in ticks_of if layer <= report.num_layers])
    axes.grid(visible=False, axis="y")


def plot_seconds(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """Measured seconds against mean exit layer, and seconds in proportion to layers."""
    layers = report.num_layers
    slowest = max(seconds for timing in report.timings for seconds in timing.passes)
    axes.plot(
        [0, layers],
        [0, report.promised_seconds(layers)],
        color=colours["muted"],
        linestyle=(0, (5, 3)),
        linewidth=1.2,
        label="promised by layers: full depth x layers / L",
    )
    medians = [timing.seconds for timing in report.timings]
    axes.errorbar(
        [timing.mean_exit_layer for timing in report.timings],
        medians,
        yerr=[
            [t.seconds - min(t.passes) for t in report.timings],
            [max(t.passes) - t.seconds for t in report.timings],
        ],
        color=colours["accent"],
        marker="o",
        markersize=5,
        linewidth=1.8,
        elinewidth=1,
        label="measured, median and range",
    )
    # A reference far above the other points would compress their scale.
    reference = report.metrics["full_depth_seconds"]
    top = max(1.1 * slowest, min(1.1 * reference, 1.5 * slowest))
    axes.plot(
        [layers],
        [min(reference, 0.93 * top)],
        color=colours["second"],
        marker="D" if reference < top else "^",
        markersize=6,
        linestyle="none",
        label=f"Hugging Face, full depth: {reference:.3g} s{'' if reference < top else ' (above)'}",
    )
    _by_layer(axes, report)
    axes.set(title="Seconds against layers", xlabel="mean exit layer", ylabel="seconds",
             xlim=(0, layers + 0.3), ylim=(0, top))  # fmt: skip
    _legend_below(axes, columns=1)


def _by_layer(axes: Axes, report: Report) -> None:
    axes.set_xlim(0.4, report.num_layers + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _count(rows: int) -> str:
    """The number, short enough to fit below a bar."""
    return str(rows) if rows < 10_000 else f"{rows / 1000:.0f}k"


def _legend_below(axes: Axes, columns: int = 2, tick_lines: int = 1) -> None:
    place = (0.5, -0.12 - 0.05 * tick_lines)
    axes.legend(loc="upper center", bbox_to_anchor=place, ncols=columns)


PLOTS: tuple[Plot, ...] = (
    plot_curves,
    plot_histogram,
    plot_hardness,
    plot_reliability,
    plot_classes,
    plot_seconds,
)
