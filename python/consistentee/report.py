"""The page that shows what early exit did to a test set, and its two plots as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

METRICS = (
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

# The names are the page's CSS variables; every colour is another, for `_inline_svg`.
_LIGHT = {
    "paper": "#fdfdfc",
    "panel": "#f4f4f1",
    "ink": "#22262b",
    "muted": "#6a7078",
    "line": "#dcdcd8",
    "accent": "#24649c",
    "second": "#b26a2c",
}
_DARK = {
    "paper": "#15181b",
    "panel": "#1e2226",
    "ink": "#e4e6e8",
    "muted": "#98a0a8",
    "line": "#343a40",
    "accent": "#74aee0",
    "second": "#d9985c",
}

Metric = float | int | str
Plot = Callable[[Axes, "Report", dict[str, str]], None]


@dataclass(frozen=True)
class Example:
    """One row of the test set, and how it left."""

    text: str
    label: str
    predicted: str
    exit_layer: int
    score: float


@dataclass(frozen=True)
class Report:
    """What `write_report` shows; accuracies are fractions, layers are counted from 1.

    Attributes:
        title: heading of the page.
        metrics: at least `METRICS`; ``full_depth_seconds`` is the Hugging Face model's time.
            Further ones, such as the batch size, are listed below the tiles.
        curve: (mean exit layer, accuracy) for each threshold of a sweep.
        layer_accuracy: accuracy of each layer's classifier over all rows, L values.
        exit_histogram: rows that left at each layer, L values.
        first_out: rows that left at the first layers.
        last_out: rows that ran the most layers.

    Raises:
        ValueError: a metric is missing, or there are not L layers.
    """

    title: str
    metrics: dict[str, Metric]
    curve: list[tuple[float, float]]
    layer_accuracy: list[float]
    exit_histogram: list[int]
    first_out: list[Example]
    last_out: list[Example]

    def __post_init__(self) -> None:
        missing = [name for name in METRICS if name not in self.metrics]
        if missing:
            raise ValueError(f"metrics: expected {', '.join(METRICS)}, got no {', '.join(missing)}")
        num_layers = self.metrics["num_layers"]
        for name in ("layer_accuracy", "exit_histogram"):
            found = len(getattr(self, name))
            if found != num_layers:
                raise ValueError(f"{name}: expected {num_layers} layers, got {found}")


def write_report(path: str | Path, report: Report) -> None:
    """Write one self-contained HTML page, whole or not at all: no scripts, no outside assets."""
    html = _PAGE.format(
        title=escape(report.title),
        light=_css_variables(_LIGHT),
        dark=_css_variables(_DARK),
        tiles=_tiles(report),
        setup=_setup(report),
        curve=_inline_svg(_plot_curve, report),
        histogram=_inline_svg(_plot_histogram, report),
        first_out=_table(report.first_out),
        last_out=_table(report.last_out),
    )
    _replace(Path(path), html.encode())


def save_figure(path: str | Path, report: Report) -> None:
    """Write the two plots side by side as a PNG, whole or not at all."""
    with _style(_LIGHT):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _plot_curve(left, report, _LIGHT)
        _plot_histogram(right, report, _LIGHT)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor=_LIGHT["paper"])
    _replace(Path(path), buffer.getvalue())


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


# --- plots ---


def _plot_curve(axes: Axes, report: Report, colours: dict[str, str]) -> None:
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


def _plot_histogram(axes: Axes, report: Report, colours: dict[str, str]) -> None:
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


def _inline_svg(plot: Plot, report: Report) -> str:
    """A plot as an SVG element whose colours are the page's variables, so that it turns dark."""
    with _style(_LIGHT), matplotlib.rc_context({"svg.hashsalt": plot.__name__}):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        plot(figure.subplots(), report, _LIGHT)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The names of groups repeat from plot to plot; ids must be unique in a page.
    svg = re.sub(r'<g id="[^"]*"', "<g", re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S))
    for name, colour in _LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


# --- page ---


def _tiles(report: Report) -> str:
    metrics = report.metrics
    accuracy, full = float(metrics["accuracy"]), float(metrics["full_depth_accuracy"])
    seconds, full_seconds = float(metrics["seconds"]), float(metrics["full_depth_seconds"])
    points = f"{100 * (accuracy - full):+.2f}".replace("-", "\u2212")
    tiles = (
        ("accuracy", f"{accuracy:.2%}", f"{points} points to full depth"),
        ("full depth", f"{full:.2%}", "accuracy with every layer"),
        (
            "mean exit layer",
            f"{float(metrics['mean_exit_layer']):.2f}",
            f"of {metrics['num_layers']} layers",
        ),
        ("layer ratio", f"{float(metrics['layer_ratio']):.2f}", "layers / mean exit layer"),
        (
            "time ratio",
            f"{full_seconds / seconds:.2f}",
            f"Hugging Face model at full depth, {full_seconds:.2f}\u00a0s / {seconds:.2f}\u00a0s",
        ),
        ("rows", f"{metrics['rows']:,}", f"{float(metrics['rows']) / seconds:,.0f} rows a second"),
    )
    return "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>"
        for name, value, note in tiles
    )


def _setup(report: Report) -> str:
    """The metrics that no tile shows: what the run was."""
    in_tiles = METRICS[: METRICS.index("backend")]
    parts = (
        f"{name.replace('_', ' ')} <b>{escape(str(value))}</b>"
        for name, value in report.metrics.items()
        if name not in in_tiles
    )
    return " · ".join(parts)


def _table(examples: list[Example]) -> str:
    rows = (
        f"<tr{' class=wrong' if example.predicted != example.label else ''}>"
        f"<td>{escape(example.text)}</td><td>{escape(example.label)}</td>"
        f"<td>{escape(example.predicted)}</td><td>{example.exit_layer}</td>"
        f"<td>{example.score:.3f}</td></tr>"
        for example in examples
    )
    head = "".join(f"<th>{name}</th>" for name in ("text", "label", "predicted", "layer", "score"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table>"


def _css_variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; {light} }}
@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}
body {{
  max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0 0 1.5rem; }}
h2 {{ font-size: 1.1rem; margin: 2.5rem 0 .6rem; }}
p {{ color: var(--muted); font-size: .875rem; margin: .75rem 0; max-width: 46rem; }}
b {{ color: var(--ink); font-weight: 600; }}
dl {{
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: .75rem; margin: 0;
}}
dl div {{ background: var(--panel); border-radius: .4rem; padding: .8rem 1rem; }}
dt {{ font-size: .8rem; color: var(--muted); }}
dd {{ margin: 0; font-size: .75rem; line-height: 1.35; color: var(--muted); }}
dt + dd {{
  font-size: 1.6rem; font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums;
}}
.plots {{
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr));
  gap: 1.5rem; margin-top: 2rem;
}}
svg {{ width: 100%; height: auto; }}
svg text {{ font-family: inherit !important; }}
table {{ width: 100%; border-collapse: collapse; font-size: .875rem; }}
th, td {{
  text-align: left; vertical-align: top; padding: .45rem .75rem .45rem 0;
  border-bottom: 1px solid var(--line);
}}
th {{ font-weight: 500; font-size: .8rem; color: var(--muted); }}
td:first-child {{ width: 100%; overflow-wrap: anywhere; }}
th:nth-child(n+4), td:nth-child(n+4) {{
  text-align: right; padding-right: 0; padding-left: .75rem; font-variant-numeric: tabular-nums;
}}
.wrong td:nth-child(3) {{ color: var(--second); font-weight: 600; }}
.wrong td:nth-child(3)::after {{ content: " \\2717"; }}
</style>
</head>
<body>
<h1>{title}</h1>
<dl>
{tiles}
</dl>
<p>{setup}</p>
<div class="plots">
{curve}
{histogram}
</div>
<p>The layer ratio counts layers; the time ratio compares seconds on the clock, same rows, same
machine. Each point of the early-exit curve is one threshold on the exit score.</p>
<h2>Left first</h2>
{first_out}
<h2>Left last</h2>
{last_out}
<p>Score: the exit score at the layer where the row left. ✗ marks a wrong prediction.</p>
</body>
</html>
"""
