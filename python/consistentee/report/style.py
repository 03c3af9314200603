"""The colours of page and plots; renders plots as elements of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from consistentee.report.contents import Report

# The names are the page's CSS variables. `inline_svg` needs all colours to be different.
LIGHT = {
    "paper": "#fdfdfc",
    "panel": "#f4f4f1",
    "ink": "#22262b",
    "muted": "#6a7078",
    "line": "#dcdcd8",
    "accent": "#24649c",
    "second": "#b26a2c",
    "third": "#3f8f5f",
    "fourth": "#8a5bb0",
    "fifth": "#2b9aa0",
    "sixth": "#c04a6b",
}
DARK = {
    "paper": "#15181b",
    "panel": "#1e2226",
    "ink": "#e4e6e8",
    "muted": "#98a0a8",
    "line": "#343a40",
    "accent": "#74aee0",
    "second": "#d9985c",
    "third": "#6fc08e",
    "fourth": "#b491d8",
    "fifth": "#5cc4ca",
    "sixth": "#e5809d",
}
SIZE = (5.6, 4.2)  # inches of one plot

Plot = Callable[[Axes, Report, dict[str, str]], None]


@contextmanager
def style(colours: dict[str, str]) -> Iterator[None]:
    """Matplotlib's settings for the plots of a report."""
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
        "legend.frameon": False,
        "legend.labelcolor": colours["ink"],
        "text.color": colours["ink"],
        "text.parse_math": False,  # a class may be called $x$
        "xtick.color": colours["muted"],
        "ytick.color": colours["muted"],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(rc), warnings.catch_warnings():
        # Names of classes may need glyphs that matplotlib's font lacks but browsers have.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def inline_svg(plot: Plot, report: Report) -> str:
    """A plot as an SVG element; its colours are the page's variables, so it follows dark mode."""
    with style(LIGHT), matplotlib.rc_context({"svg.hashsalt": plot.__name__}):
        figure = Figure(figsize=SIZE, layout="constrained")
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
