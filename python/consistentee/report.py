"""The page that shows what early exit did to a test set."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from consistentee.files import whole_file
from consistentee.plots import DARK, LIGHT, inline_svg, plot_curve, plot_histogram

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

Metric = float | int | str


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
        light=_css_variables(LIGHT),
        dark=_css_variables(DARK),
        tiles=_tiles(report),
        setup=_setup(report),
        curve=inline_svg(plot_curve, report),
        histogram=inline_svg(plot_histogram, report),
        first_out=_table(report.first_out),
        last_out=_table(report.last_out),
    )
    with whole_file(path) as partial:
        partial.write_text(html, encoding="utf-8")


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
