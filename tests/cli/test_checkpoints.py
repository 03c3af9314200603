"""`evaluate`, `predict`, `calibrate` as a user types them, and the one line where they cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import Run, check_one_line
from support.files import write


def test_evaluate_writes_its_figures(
    run: Callable[..., Run], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    done = run("evaluate", checkpoint, "--data", data / "test.tsv", "--json", file)
    assert done.code == 0, done.err
    assert "layer ratio" in done.out
    metrics = json.loads(file.read_text())
    expected = {
        "accuracy", "full_depth_accuracy", "mean_exit_layer", "layer_ratio", "exit_histogram",
        "rows", "seconds", "full_depth_seconds", "backend", "dtype", "threads",
    }  # fmt: skip
    assert expected <= metrics.keys()
    histogram = metrics["exit_histogram"]
    assert sum(histogram) == metrics["rows"] == 40
    mean = sum(layer * rows for layer, rows in enumerate(histogram, start=1)) / 40
    assert metrics["mean_exit_layer"] == pytest.approx(mean)
    assert metrics["layer_ratio"] == pytest.approx(3 / mean)
    assert metrics["seconds"] > 0 < metrics["full_depth_seconds"]

    full = tmp_path / "full.json"
    run("evaluate", checkpoint, "--data", data / "test.tsv", "--threshold", 1, "--json", full)
    at_full_depth = json.loads(full.read_text())
    assert at_full_depth["exit_histogram"] == [0, 0, 40]
    assert at_full_depth["accuracy"] == metrics["full_depth_accuracy"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_predict_agrees_with_evaluate(
    run: Callable[..., Run], checkpoint: Path, data: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"predictions{suffix}"
    done = run("predict", checkpoint, data / "test.tsv", "--output", output)
    assert done.code == 0, done.err
    from consistentee.data.tables import load_texts

    rows, _ = load_texts(output)
    given, _ = load_texts(data / "test.tsv")
    assert rows.column_names == [*given.column_names, "prediction", "exit_layer", "exit_score"]
    assert all(rows[name][:] == given[name][:] for name in given.column_names)
    right = [a == b for a, b in zip(rows["prediction"], rows["label"], strict=True)]
    file = tmp_path / "figures.json"
    run("evaluate", checkpoint, "--data", data / "test.tsv", "--json", file)
    assert sum(right) / 40 == json.loads(file.read_text())["accuracy"]
    assert list(tmp_path.iterdir()) == [output, file] or set(tmp_path.iterdir()) == {output, file}


def test_calibrate_writes_the_threshold(
    run: Callable[..., Run], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(checkpoint, copy)
    before = json.loads((copy / "config.json").read_text())
    done = run("calibrate", copy, "--data", data / "dev.tsv", "--layer-ratio", 1.5)
    assert done.code == 0, done.err
    config = json.loads((copy / "config.json").read_text())
    assert {k for k in config if config[k] != before[k]} == {"threshold"}
    file = tmp_path / "figures.json"
    run("evaluate", copy, "--data", data / "dev.tsv", "--json", file)
    assert json.loads(file.read_text())["layer_ratio"] >= 1.5
    done = run("calibrate", copy, "--data", data / "dev.tsv", "--latency-ms", 1000)
    assert done.code == 0, done.err
    assert json.loads((copy / "config.json").read_text())["threshold"] == 1.0

    dev = ("--data", data / "dev.tsv")
    few = run("calibrate", copy, *dev, "--max-accuracy-drop", 0.01)
    check_one_line(few, "data: expected at least 485 rows", "got 24")
    done = run("calibrate", copy, *dev, "--max-accuracy-drop", 0.5)
    assert done.code == 0, done.err
    check_one_line(run("calibrate", copy, *dev), "expected one of", "got 0")
    two = run("calibrate", copy, *dev, "--layer-ratio", 2, "--latency-ms", 5)
    check_one_line(two, "expected one of", "got 2")
    check_one_line(run("calibrate", copy, *dev, "--layer-ratio", 9), "layer_ratio", "1..3", "9.0")
    nowhere = run("calibrate", tmp_path / "none", *dev, "--layer-ratio", 2)
    check_one_line(nowhere, "none: expected a folder")


def test_calibrate_writes_levels(
    run: Callable[..., Run], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(checkpoint, copy)
    before = json.loads((copy / "config.json").read_text())
    goals = {"fast": ("--max-accuracy-drop", 0.5), "exact": ("--max-disagreement", 0.2)}
    for name, goal in goals.items():
        asked = ("--data", data / "train.tsv", *goal, "--level", name, "--confidence", 0.9)
        done = run("calibrate", copy, *asked)
        assert done.code == 0, done.err
    config = json.loads((copy / "config.json").read_text())
    levels = config.pop("levels")
    before.pop("levels", None)
    assert config == before
    assert set(levels) == {"fast", "exact"}
    assert levels["fast"]["guarantee"] == {"max_accuracy_drop": 0.5}
    assert levels["exact"]["guarantee"] == {"max_disagreement": 0.2}
    assert all((level["rows"], level["confidence"]) == (96, 0.9) for level in levels.values())

    from consistentee_ext import FastEarlyExitEncoder

    encoder = FastEarlyExitEncoder.from_pretrained(copy)
    assert encoder.threshold == before["threshold"]
    encoder.level = "fast"
    assert encoder.threshold == levels["fast"]["threshold"] < 1.0

    dev = ("--data", data / "dev.tsv", "--level")
    without = run("calibrate", copy, *dev, "x", "--layer-ratio", 1.5)
    check_one_line(without, "level: expected max_accuracy_drop or max_disagreement")
    unnamed = run("calibrate", copy, *dev, "", "--max-accuracy-drop", 0.5)
    check_one_line(unnamed, "level: expected a name")


def test_evaluate_and_predict_say_in_one_line_what_is_wrong(
    run: Callable[..., Run], data: Path, checkpoint: Path, backbone: Path, tmp_path: Path
) -> None:
    test = data / "test.tsv"
    output = tmp_path / "out.tsv"
    check_one_line(run("evaluate", tmp_path / "nowhere", "--data", test), "nowhere")
    check_one_line(run("evaluate", checkpoint, "--data", tmp_path / "none.tsv"), "none.tsv")
    for threshold in (0, 1.5, -1):
        done = run("evaluate", checkpoint, "--data", test, "--threshold", threshold)
        check_one_line(done, "threshold: expected a number in (0, 1]", str(threshold))
    unknown = write(tmp_path / "unknown.tsv", "sentence\tlabel\na film\tneither\n")
    check_one_line(run("evaluate", checkpoint, "--data", unknown), "neither")
    check_one_line(run("predict", checkpoint, test, "--output", tmp_path / "out.xml"), ".xml")
    check_one_line(run("predict", checkpoint, test, "--output", test / "out.tsv"), "test.tsv")
    check_one_line(run("predict", backbone, test, "--output", output), str(backbone))
    again = write(tmp_path / "again.tsv", "sentence\texit_layer\na film\t3\n")
    check_one_line(run("predict", checkpoint, again, "--output", output), "'exit_layer'")
    check_one_line(run("predict", checkpoint, "--output", output), "input")
    check_one_line(run("predict", checkpoint, test), "--output")
    check_one_line(run("fly"), "fly")
    assert not output.exists()


def test_backends(run: Callable[..., Run]) -> None:
    assert "torch" in run("backends").out
