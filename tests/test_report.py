import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import numpy
import pytest

from consistentee.plots import save_figure
from consistentee.report import Example, Report, write_report

METRICS = {
    "accuracy": 0.8783,
    "full_depth_accuracy": 0.8808,
    "mean_exit_layer": 2.0,
    "layer_ratio": 1.5,
    "num_layers": 3,
    "rows": 1200,
    "seconds": 1.25,
    "full_depth_seconds": 10.0,
    "backend": "cpu",
    "dtype": "bfloat16",
    "threads": 2,
    "batch_size": 32,
}
VOID = {"meta", "path", "use", "br"}


@pytest.fixture
def report() -> Report:
    return Report(
        title="Tea & <coffee>",
        metrics=dict(METRICS),
        curve=[(3.0, 0.8808), (1.0, 0.5), (2.0, 0.8783)],
        layer_accuracy=[0.5, 0.75, 0.8808],
        exit_histogram=[611, 222, 367],
        first_out=[Example("<script>alert(1)</script>", "a&b", "a&b", 1, 0.98765)],
        last_out=[Example("hard one", "x", "y", 3, 0.25)],
    )


class Page(HTMLParser):
    """Tags must close in order; texts, addresses and ids are kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts, self.links, self.ids = [], [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.handle_attributes(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.handle_attributes(attrs)

    def handle_attributes(self, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.ids += [values["id"]] if "id" in values else []

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


@pytest.fixture
def html(tmp_path, report) -> str:
    write_report(tmp_path / "report.html", report)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(html):
    page = Page(html)
    assert page.open == []
    assert page.tags.count("svg") == 2
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert len(html) < 60_000


def test_page_shows_the_figures(html):
    texts = Page(html).texts
    start = texts.index("accuracy", texts.index("Tea & <coffee>", 2))
    expected = [
        ("accuracy", "87.83%", "\u22120.25 points to full depth"),
        ("full depth", "88.08%", "accuracy with every layer"),
        ("mean exit layer", "2.00", "of 3 layers"),
        ("layer ratio", "1.50", "layers / mean exit layer"),
        (
            "time ratio",
            "8.00",
            "Hugging Face model at full depth, 10.00\u00a0s / 1.25\u00a0s",
        ),
        ("rows", "1,200", "960 rows a second"),
    ]
    assert texts[start : start + 18] == [text for tile in expected for text in tile]
    setup = " ".join(texts[start + 18 : start + 26])
    assert setup == "backend cpu · dtype bfloat16 · threads 2 · batch size 32"


def test_examples_are_escaped_and_wrong_ones_marked(html):
    texts = Page(html).texts
    first = texts.index("<script>alert(1)</script>")
    assert texts[first : first + 5] == ["<script>alert(1)</script>", "a&b", "a&b", "1", "0.988"]
    assert "<tr class=wrong><td>hard one</td><td>x</td><td>y</td><td>3</td><td>0.250</td>" in html
    assert html.count("<tr class=wrong>") == 1


def test_plots_name_their_axes_and_take_the_colours_of_the_page(html):
    plots = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    curve, histogram = (Page(plot).texts for plot in plots)
    assert {"mean exit layer (layers)", "accuracy (%)", "full depth"} <= set(curve)
    assert {"exit layer", "rows", "611", "222", "367"} <= set(histogram)
    for plot in plots:
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", plot))
        assert {"var(--accent)", "var(--ink)", "var(--line)"} <= colours
        assert not any(colour.startswith("#") for colour in colours)


def test_counts_leave_the_histogram_where_they_would_collide(tmp_path, report):
    counts = [7000 + layer for layer in range(24)]
    deep = replace(
        report,
        metrics={**METRICS, "num_layers": 24},
        layer_accuracy=[0.5] * 24,
        exit_histogram=counts,
    )
    write_report(tmp_path / "report.html", deep)
    assert "7023" not in Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts


def test_same_report_same_bytes(tmp_path, report, html):
    write_report(tmp_path / "again.html", report)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_an_older_report_outlives_a_failure(tmp_path, report):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="could not convert string to float"):
        write_report(path, replace(report, metrics={**METRICS, "seconds": "fast"}))
    assert path.read_text() == "old"


def test_figure_is_a_picture_of_both_plots(tmp_path, report):
    save_figure(tmp_path / "plots.png", report)
    assert [path.name for path in tmp_path.iterdir()] == ["plots.png"]
    pixels = matplotlib.image.imread(tmp_path / "plots.png")
    height, width, _ = pixels.shape
    assert (height, width) == (608, 1600)
    accent = numpy.array([0x24, 0x64, 0x9C]) / 255
    near = (numpy.abs(pixels[:, :, :3] - accent) < 0.01).all(axis=2)
    # Bars hold far more of the accent colour than the curve does.
    assert 0 < near[:, : width // 2].sum() < near[:, width // 2 :].sum()


def test_report_names_what_is_missing(report):
    metrics = {name: value for name, value in METRICS.items() if name not in ("rows", "dtype")}
    with pytest.raises(ValueError, match=r"metrics: expected .*, got no rows, dtype"):
        replace(report, metrics=metrics)
    with pytest.raises(ValueError, match="exit_histogram: expected 3 layers, got 2"):
        replace(report, exit_histogram=[1, 2])
    with pytest.raises(ValueError, match="layer_accuracy: expected 3 layers, got 1"):
        replace(report, layer_accuracy=[0.5])
