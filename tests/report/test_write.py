"""The page, the picture and the figures of a report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy
import pytest

from consistentee.measures.curves import Curve
from consistentee.report.contents import ClassDepth, Example, Report, ScoreBin, Timing, shorten
from consistentee.report.plots import PLOTS
from consistentee.report.write import check_report, write_report

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
    "f1": 0.123456,
    "exit_histogram": [611, 222, 367],
}
VOID = {"meta", "path", "use", "br"}


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(
        title="Tea & <coffee>",
        metrics=dict(METRICS),
        curves={
            "this checkpoint, by policy": Curve((1.0, 2.0, 3.0), (0.5, 0.8783, 0.8808), (0, 1, 2)),
            "by patience, same weights": Curve((1.0, 3.0), (0.5, 0.8808)),
            "oracle": Curve((1.0, 2.5), (0.5, 0.95)),
        },
        seeds=None,
        exit_histogram=[611, 222, 367],
        hardness=[[600, 200, 0], [0, 0, 0], [11, 22, 367]],
        failure_auroc=[0.75, None],
        reliability=[
            ScoreBin(low=0.1, high=0.5, score=0.25, right=0.5, answers=10, left=0),
            ScoreBin(low=0.6, high=1.0, score=0.75, right=0.875, answers=16, left=12),
        ],
        classes=[ClassDepth("a<b & $c$", 1.5, 0.9, 800), ClassDepth("d", 2.25, 0.75, 400)],
        timings=[Timing(0.5, 1.5, (0.75, 0.5, 1.5)), Timing(1.0, 3.0, (3.0, 1.0, 1.2))],
        first_out=[Example("<script>alert(1)</script>", "a&b", "a&b", 1, 0.98765)],
        last_out=[Example("hard one", "x", "y", 3, 0.25)],
    )


class Page(HTMLParser):
    """Tags must close in order; texts, addresses and ids are kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
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


def plots_of(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, report) -> Path:
    """The report, written once for those who only look at it."""
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "report.html", report)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["report.html", "report.json", "report.png"]
    return folder


@pytest.fixture(scope="module")
def html(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(html):
    page = Page(html)
    assert page.open == []
    assert page.tags.count("svg") == page.tags.count("figcaption") == len(PLOTS) == 6
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert len(html) < 120_000


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
    setup = " ".join(texts[start + 18 : start + 28])
    assert setup == "backend cpu · dtype bfloat16 · threads 2 · batch size 32 · f1 0.1235"


def test_examples_are_escaped_and_wrong_ones_marked(html):
    texts = Page(html).texts
    first = texts.index("<script>alert(1)</script>")
    assert texts[first : first + 5] == ["<script>alert(1)</script>", "a&b", "a&b", "1", "0.988"]
    assert "<tr class=wrong><td>hard one</td><td>x</td><td>y</td><td>3</td><td>0.250</td>" in html
    assert html.count("<tr class=wrong>") == 1


def test_plots_name_their_axes_and_take_the_colours_of_the_page(html):
    curves, histogram, hardness, reliability, classes, seconds = (
        set(Page(plot).texts) for plot in plots_of(html)
    )
    names = {"this checkpoint, by policy", "by patience, same weights", "oracle"}
    assert {"mean exit layer", "accuracy (%)", "as measured here"} | names <= curves
    assert {"exit layer", "rows", "611", "222", "367"} <= histogram
    assert {"800", "0", "400", "mean exit layer"} <= hardness  # rows of each Memorized Layer
    assert {"0.25", "10", "0.75", "16", "right (%)"} <= reliability
    assert {"a<b & $c$", "90% of 800", "d", "75% of 400"} <= classes
    assert {"seconds", "Hugging Face, full depth: 10 s (above)"} <= seconds
    for plot in plots_of(html):
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", plot))
        assert {"var(--accent)", "var(--ink)", "var(--line)"} <= colours
        assert not any(colour.startswith("#") for colour in colours)


def test_json_holds_what_the_plots_show(folder, report):
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found["metrics"] == METRICS
    assert found["curves"]["this checkpoint, by policy"] == {
        "layers": [1.0, 2.0, 3.0],
        "accuracy": [0.5, 0.8783, 0.8808],
    }
    assert list(found["curves"]) == list(report.curves)
    assert found["exit_histogram"] == [611, 222, 367]
    assert found["hardness"] == {
        "rows": [[600, 200, 0], [0, 0, 0], [11, 22, 367]],
        "mean_exit_layer": [1000 / 800, None, (11 + 44 + 1101) / 400],
    }
    assert found["failure_auroc"] == [0.75, None]
    assert found["reliability"][1] == {
        "low": 0.6, "high": 1.0, "score": 0.75, "right": 0.875, "answers": 16, "left": 12,
    }  # fmt: skip
    assert found["classes"][1] == {
        "label": "d", "mean_exit_layer": 2.25, "accuracy": 0.75, "rows": 400,
    }  # fmt: skip
    # Medians of passes; full depth takes 1.2 s, of which half the layers promise half.
    assert [timing["seconds"] for timing in found["timings"]] == [0.75, 1.2]
    assert [timing["promised_seconds"] for timing in found["timings"]] == pytest.approx([0.6, 1.2])
    assert found["timings"][0]["threshold"] == 0.5
    assert found["timings"][0]["passes"] == [0.75, 0.5, 1.5]


def test_captions_say_what_the_curves_are_of(tmp_path, html, report):
    assert "The other curves have the same weights" in html
    write_report(tmp_path / "report.html", replace(report, seeds=3))
    compared = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "trained for comparison, mean over seeds: 3." in compared
    assert "same weights;" not in compared


def test_of_many_classes_the_shallowest_and_the_deepest_are_shown(tmp_path, report):
    classes = [ClassDepth(f"class {number}", 1 + number / 20, 0.5, 7) for number in range(21)]
    for count, shown in ((20, range(20)), (21, [*range(10), *range(11, 21)])):
        write_report(tmp_path / "report.html", replace(report, classes=classes[:count]))
        texts = Page(plots_of((tmp_path / "report.html").read_text(encoding="utf-8"))[4]).texts
        names = [text for text in texts if text.startswith("class ")]
        assert names == [f"class {number}" for number in shown]
        assert texts.count("…") == count - 20
        found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert len(found["classes"]) == count


def test_counts_leave_the_plots_where_they_would_collide(tmp_path, report):
    counts = [7000 + layer for layer in range(24)]
    deep = replace(
        report,
        metrics={**METRICS, "num_layers": 24},
        exit_histogram=counts,
        hardness=[[count] + [0] * 23 for count in counts],
        failure_auroc=[0.5] * 23,
    )
    write_report(tmp_path / "report.html", deep)
    assert "7023" not in Page((tmp_path / "report.html").read_text(encoding="utf-8")).texts


def test_one_layer_alone_has_no_scores(tmp_path, report):
    single = replace(
        report,
        metrics={**METRICS, "num_layers": 1, "mean_exit_layer": 1.0},
        curves={"this checkpoint, by policy": Curve((1.0,), (0.88,))},
        exit_histogram=[1200],
        hardness=[[1200]],
        failure_auroc=[],
        reliability=[],
        timings=[Timing(1.0, 1.0, (1.0,))],
    )
    write_report(tmp_path / "report.html", single)
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).tags.count("svg") == 6


def test_same_report_same_bytes(tmp_path, report, html):
    write_report(tmp_path / "again.html", report)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_an_older_report_outlives_a_failure(tmp_path, report, monkeypatch):
    files = [tmp_path / f"report.{suffix}" for suffix in ("html", "png", "json")]
    for file in files:
        file.write_text("old")
    with pytest.raises(ValueError, match="could not convert string to float"):
        write_report(files[0], replace(report, metrics={**METRICS, "seconds": "fast"}))
    # The last of the three fails: neither of the others appears.
    unwritable = replace(report, metrics={**METRICS, "what": object()})
    with pytest.raises(TypeError, match="JSON"):
        write_report(files[0], unwritable)
    assert [file.read_text() for file in files] == ["old"] * 3
    assert set(tmp_path.iterdir()) == set(files)


def test_the_page_is_called_html(tmp_path, report):
    for name in ("report.png", "report.json", "report"):
        with pytest.raises(ValueError, match=r"expected a name that ends in \.html, got"):
            write_report(tmp_path / name, report)
    assert list(tmp_path.iterdir()) == []
    check_report(tmp_path / "new" / "report.html")
    assert (tmp_path / "new").is_dir()


def test_picture_has_all_plots(folder):
    pixels = matplotlib.image.imread(folder / "report.png")
    height, width, _ = pixels.shape
    assert (height, width) == (2016, 1792)
    accent = numpy.array([0x24, 0x64, 0x9C]) / 255
    near = (numpy.abs(pixels[:, :, :3] - accent) < 0.02).all(axis=2)
    blocks = near.reshape(3, height // 3, 2, width // 2).sum(axis=(1, 3))
    # Bars hold far more of the accent colour than lines do.
    assert (blocks[[0, 1, 2], [1, 1, 0]] > 20_000).all()
    assert 0 < blocks[0, 0] < 20_000
    assert 0 < blocks[2, 1] < 20_000


def test_report_names_what_is_missing(report):
    metrics = {name: value for name, value in METRICS.items() if name not in ("rows", "dtype")}
    with pytest.raises(ValueError, match=r"metrics: expected .*, got no rows, dtype"):
        replace(report, metrics=metrics)
    with pytest.raises(ValueError, match="exit_histogram: expected 3 layers, got 2"):
        replace(report, exit_histogram=[1, 2])
    with pytest.raises(ValueError, match="hardness: expected 3 layers, got 1"):
        replace(report, hardness=[[1, 2, 3]])


def test_shortened_text_stays_on_its_line():
    assert shorten("a\n b\tc", 5) == "a b c"
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcd efg", 6) == "abcd…"
