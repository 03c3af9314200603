"""The page of a report: its HTML and CSS."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from consistentee.report.contents import REQUIRED_METRICS, Example, Report, shorten
from consistentee.report.plots import PLOTS
from consistentee.report.style import DARK, LIGHT, inline_svg

TEXT_WIDTH = 400  # characters of an example


def page(report: Report) -> str:
    """One self-contained HTML page: no scripts, no outside assets."""
    figures = (
        f"<figure>\n{inline_svg(plot, report)}<figcaption>{escape(caption)}</figcaption>\n</figure>"
        for plot, caption in zip(PLOTS, _captions(report), strict=True)
    )
    body = _BODY.format(
        title=escape(report.title),
        tiles=tiles(_tiles(report)),
        setup=_setup(report),
        failures=_failures(report),
        plots="\n".join(figures),
        first_out=_table(report.first_out),
        last_out=_table(report.last_out),
    )
    return document(report.title, body)


def document(title: str, body: str, css: str = "") -> str:
    """A whole page in the reports' style, which `css` adds to."""
    return _DOCUMENT.format(
        title=escape(title),
        light=_css_variables(LIGHT),
        dark=_css_variables(DARK),
        more=css,
        body=body,
    )


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Elements of a ``dl``: name, figure, note."""
    return "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>"
        for name, value, note in figures
    )


def _captions(report: Report) -> tuple[str, ...]:
    """One for each of `PLOTS`."""
    others = (
        "The other curves have the same weights; the oracle leaves at each row's first right layer."
        if report.seeds is None
        else "The other curves are methods trained for comparison, mean over seeds: "
        f"{report.seeds}."
    )
    return (
        f"A point of a curve is one threshold; the ring is the one measured here. {others}",
        "Rows that leave at each layer; at the last one, all that are left.",
        "Memorized Layer: from there on every layer answers the row right; L where the last one "
        "is wrong. The stronger a square, the more rows of its column leave there.",
        "Answers at the early layers that rows reach, in bins of like score and equal size: the "
        "higher the score, the more of them should be right.",
        "Classes from the shallowest to the deepest, with accuracy and rows"
        + (", the ten of either end." if len(report.classes) > 20 else "."),
        "The engine at several thresholds, without tokenisation, beside the time it would take "
        "were time in proportion to layers.",
    )


def _tiles(report: Report) -> tuple[tuple[str, str, str], ...]:
    metrics = report.metrics
    accuracy, full = float(metrics["accuracy"]), float(metrics["full_depth_accuracy"])
    seconds, full_seconds = float(metrics["seconds"]), float(metrics["full_depth_seconds"])
    points = f"{100 * (accuracy - full):+.2f}".replace("-", "\u2212")
    return (
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


def _setup(report: Report) -> str:
    """The metrics that are neither in tiles nor in plots: the setup of the run."""
    in_tiles = REQUIRED_METRICS[: REQUIRED_METRICS.index("backend")]
    parts = (
        f"{name.replace('_', ' ')} <b>{escape(_number(value))}</b>"
        for name, value in report.metrics.items()
        if name not in in_tiles and not isinstance(value, list)
    )
    return " · ".join(parts)


def _failures(report: Report) -> str:
    """How well each layer's score tells right answers from wrong ones."""
    values = ("-" if each is None else f"{each:.2f}" for each in report.failure_auroc)
    return " ".join(values)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(examples: list[Example]) -> str:
    rows = (
        f"<tr{' class=wrong' if example.predicted != example.label else ''}>"
        f"<td>{escape(shorten(example.text, TEXT_WIDTH))}</td><td>{escape(example.label)}</td>"
        f"<td>{escape(example.predicted)}</td><td>{example.exit_layer}</td>"
        f"<td>{example.score:.3f}</td></tr>"
        for example in examples
    )
    head = "".join(f"<th>{name}</th>" for name in ("text", "label", "predicted", "layer", "score"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table>"


def _css_variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_DOCUMENT = """<!doctype html>
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
  gap: 2.25rem 1.75rem; margin-top: 2rem;
}}
figure {{ margin: 0; }}
figcaption {{ color: var(--muted); font-size: .8rem; line-height: 1.4; margin: .2rem 0 0; }}
svg {{ width: 100%; height: auto; }}
svg text {{ font-family: inherit !important; }}
table {{ width: 100%; border-collapse: collapse; font-size: .875rem; }}
th, td {{
  text-align: left; vertical-align: top; padding: .45rem .75rem .45rem 0;
  border-bottom: 1px solid var(--line);
}}
th {{ font-weight: 500; font-size: .8rem; color: var(--muted); }}
td:first-child {{ width: 100%; overflow-wrap: anywhere; }}
td:nth-child(2), td:nth-child(3) {{ min-width: 8rem; }}
th:nth-child(n+4), td:nth-child(n+4) {{
  text-align: right; padding-right: 0; padding-left: .75rem; font-variant-numeric: tabular-nums;
}}
.wrong td:nth-child(3) {{ color: var(--second); font-weight: 600; }}
.wrong td:nth-child(3)::after {{ content: " \\2717"; }}
{more}</style>
</head>
<body>
{body}</body>
</html>
"""

_BODY = """<h1>{title}</h1>
<dl>
{tiles}
</dl>
<p>{setup}</p>
<p>How well the exit score of layers 1, 2 ... tells right answers from wrong ones (AUROC; 0.5 is
chance, 1 no mistake): <b>{failures}</b></p>
<p>The layer ratio counts layers; the time ratio compares seconds on the clock, same rows, same
machine.</p>
<div class="plots">
{plots}
</div>
<h2>Left first</h2>
{first_out}
<h2>Left last</h2>
{last_out}
<p>Score: the exit score at the layer where the row left. ✗ marks a wrong prediction.</p>
"""
