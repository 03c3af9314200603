"""Figures as tables on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from consistentee_ext.names import METRICS

if TYPE_CHECKING:  # at run time they would import torch and datasets
    from consistentee.atomic_files import Json
    from consistentee.measures.metrics import Quality


def figure(metric: str, value: float) -> str:
    """A metric's value as text: accuracy in percent."""
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"


def show(title: str, rows: dict[str, str]) -> None:
    """Print a table of two columns."""
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def quality_rows(quality: Quality) -> dict[str, str]:
    """Rows of a table: the metric at the exits and at full depth."""
    metric = quality.metric
    return {
        metric: figure(metric, quality.at_exits),
        f"{metric} at full depth": figure(metric, quality.at_full_depth),
    }


def show_metrics(title: str, metrics: Json) -> None:
    """Print the metrics of an `Evaluation` as a table."""
    from consistentee.measures.metrics import Quality

    full, fast = metrics["full_depth_seconds"], metrics["seconds"]
    names = [name for name in METRICS if name in metrics]
    qualities = [quality_rows(Quality.from_figures(metrics, name)) for name in names]
    show(
        title,
        {
            **{name: value for rows in qualities for name, value in rows.items()},
            "mean exit layer": f"{metrics['mean_exit_layer']:.2f} of {metrics['num_layers']}",
            "layer ratio": f"{metrics['layer_ratio']:.2f}",
            "rows leaving at each layer": " ".join(map(str, metrics["exit_histogram"])),
            "seconds": f"{fast:.3f}",
            "seconds, Hugging Face at full depth": f"{full:.3f}",
            "wall-clock ratio": f"{full / fast:.2f}x",
            "": f"{metrics['rows']} rows, batches of {metrics['batch_size']}, {metrics['dtype']}, "
            f"{metrics['threads']} threads, backend {metrics['backend']}",
        },
    )


def show_rules(rules: dict[str, list[Json]]) -> None:
    """A generator's exit rules: agreement and cost ratio of each point."""
    caption = "tokens as at full depth, on its text (%) @ cost ratio, from slow to fast"
    table = Table(title="exit rules", caption=caption, show_header=False)
    for name, points in rules.items():
        ascending = sorted(points, key=lambda point: point["cost_ratio"])
        figures = (f"{100 * p['agreement']:.1f} @ {p['cost_ratio']:.2f}" for p in ascending)
        table.add_row(name, "  ".join(figures))
    Console().print(table)


def show_generators(title: str, result: Json) -> None:
    """Texts of every exit rule at equal cost: ROUGE-L and its differences with their intervals."""
    full = _score(result["full_depth"])
    seeds = len(result["seeds"])
    for place, ratio in enumerate(result["ratios"]):
        caption = (
            f"{result['rows']} texts, {seeds} seed{'s' if seeds > 1 else ''}; full depth {full}; "
            "in brackets 95% of the paired bootstrap"
        )
        table = Table(title=f"{title}: cost ratio {ratio}", caption=caption)
        for column in ("", "ROUGE-L", "minus full depth", "policy minus it"):
            table.add_column(column, justify="left" if column == "" else "right")
        for name, at_ratios in result["methods"].items():
            figures = at_ratios[place]
            differences = (figures.get(n) for n in ("over_full_depth", "under_policy"))
            cells = ("" if d is None else _interval(d) for d in differences)
            table.add_row(name, _score(figures["rougeL"]), *cells)
        Console().print(table)


def _score(figure: Json) -> str:
    """Mean and, of several seeds, standard deviation."""
    deviation = f" ± {figure['sd']:.2f}" if len(figure["values"]) > 1 else ""
    return f"{figure['mean']:.2f}{deviation}"


def _interval(difference: Json) -> str:
    return f"{difference['mean']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"


def show_comparison(title: str, result: Json) -> None:
    """One task: accuracy of each method at each ratio, the area, mean and deviation over seeds."""
    rows = [
        (name, [*method["accuracy"], method["area"]]) for name, method in result["methods"].items()
    ]
    _show_methods(title, result, rows, [*_ratios(result), "area"])
    point = result["operating_point"]
    Console().print(
        f"ConsistentEE at the threshold that dev gave: accuracy {_percent(point['accuracy'])} at "
        f"layer ratio {point['layer_ratio']['mean']:.2f}, full depth "
        f"{_percent(point['full_depth_accuracy'])}"
    )
    for name in result["failure_auroc"][0]:
        layers = zip(*(seed[name] for seed in result["failure_auroc"]), strict=True)
        means = (_mean_of_known(values) for values in layers)
        line = f"AUROC of {name}'s score against wrong answers, by layer: {' '.join(means)}"
        Console().print(line)


def _mean_of_known(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.2f}" if known else "-"


def show_average(methods: dict[str, list[Json]], result: Json) -> None:
    """The mean over tasks; `result` is of one of them, for ratios and seeds."""
    _show_methods("average over tasks", result, list(methods.items()), _ratios(result))


def _ratios(result: Json) -> list[str]:
    return [f"{ratio:.1f}" for ratio in result["ratios"]]


def _show_methods(
    title: str, result: Json, rows: list[tuple[str, list[Json]]], columns: list[str]
) -> None:
    seeds = len(result["seeds"])
    caption = f"accuracy (%) at layer ratio; {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=title, caption=caption)
    for column in ("", *columns):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, figures in rows:
        table.add_row(name, *map(_percent, figures))
    Console().print(table)


def _percent(figure: Json) -> str:
    """Mean and, of several seeds, standard deviation."""
    deviation = f" ± {100 * figure['sd']:.2f}" if len(figure["values"]) > 1 else ""
    return f"{100 * figure['mean']:.2f}{deviation}"
