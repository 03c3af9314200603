"""Writes a report: the page, a picture of its plots, and their numbers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from consistentee.atomic_files import Json, check_writable, whole_file, write_json
from consistentee.report.contents import Report
from consistentee.report.page import page
from consistentee.report.plots import save_figure


def check_report(path: str | Path) -> None:
    """Raise now if `write_report` cannot write there."""
    suffix = Path(path).suffix
    if suffix.lower() != ".html":
        raise ValueError(f"{path}: expected a name that ends in .html, got {suffix!r}")
    check_writable(path)


def write_report(path: str | Path, report: Report) -> None:
    """Write a self-contained HTML page, a PNG of its plots and a JSON file of its numbers.

    The latter two have the name of `path` with ``.png`` and ``.json``. All three are written, or
    none. The page has no scripts and no outside assets.

    Raises:
        ValueError: `path` does not end in ``.html``.
    """
    check_report(path)
    path = Path(path)
    with (
        whole_file(path) as html,
        whole_file(path.with_suffix(".png")) as picture,
        whole_file(path.with_suffix(".json")) as numbers,
    ):
        html.write_text(page(report), encoding="utf-8")
        save_figure(picture, report)
        write_json(numbers, figures(report))


def figures(report: Report) -> Json:
    """The numbers of the page and its plots, by plot."""
    return {
        "title": report.title,
        "metrics": report.metrics,
        "curves": {
            name: {"layers": list(curve.layers), "accuracy": list(curve.accuracy)}
            for name, curve in report.curves.items()
        },
        "seeds": report.seeds,
        "exit_histogram": report.exit_histogram,
        "hardness": {
            "rows": report.hardness,
            "mean_exit_layer": report.mean_exit_by_hardness(),
        },
        "reliability": [asdict(each) for each in report.reliability],
        "failure_auroc": report.failure_auroc,
        "classes": [asdict(each) for each in report.classes],
        "timings": [
            {
                "threshold": timing.threshold,
                "mean_exit_layer": timing.mean_exit_layer,
                "seconds": timing.seconds,
                "promised_seconds": report.promised_seconds(timing.mean_exit_layer),
                "passes": list(timing.passes),
            }
            for timing in report.timings
        ],
    }
