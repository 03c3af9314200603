"""The command line as a user types it: what it writes, and the one line it says when it cannot."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from support.models import save_backbone

from consistentee import cli

PRAISE = ["good", "fine", "great", "lovely"]
BLAME = ["bad", "poor", "awful", "dull"]
REST = ["film", "plot", "cast", "scene", "the", "a", "was", "very"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PRAISE, *BLAME, *REST]

TRAINED_WITH = ("--epochs", 1, "--batch-size", 16, "--seed", 7, "--alpha", 0.1)


class Run(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def call(*arguments: object) -> Run:
        monkeypatch.setattr("sys.argv", ["consistentee", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return Run(int(stopped.value.code or 0), out, err)

    return call


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Sentences whose class is their first word's."""
    choose = random.Random(seed)
    lines = ["sentence\tlabel"]
    for _ in range(rows):
        praise = choose.random() < 0.5
        first = choose.choice(PRAISE if praise else BLAME)
        rest = choose.choices(REST, k=choose.randint(1, 9))
        lines.append(f"{' '.join([first, *rest])}\t{'praise' if praise else 'blame'}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, rows) in enumerate({"train": 96, "dev": 24, "test": 40}.items()):
        write_rows(folder / f"{name}.tsv", rows, seed)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, VOCABULARY)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data: Path, backbone: Path) -> Path:
    """Trained by the command itself."""
    output = tmp_path_factory.mktemp("run") / "model"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["train", "--model", backbone, "--data", data, "--output", output]
        patch.setattr("sys.argv", ["consistentee", *map(str, [*arguments, *TRAINED_WITH])])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code in (0, None)
    return output


def test_train_makes_a_hugging_face_folder(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training_log.json"} <= names
    assert not any(path.suffix in (".bin", ".pt", ".pth", ".pkl") for path in checkpoint.iterdir())
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["id2label"] == {"0": "blame", "1": "praise"}
    assert config["alpha"] == 0.1
    assert not checkpoint.with_name("model.partial").exists()


@pytest.mark.parametrize("is_main", [True, False])
def test_of_several_processes_one_prints(
    run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    data: Path,
    backbone: Path,
    is_main: bool,
) -> None:
    one = SimpleNamespace(is_main_process=is_main)
    monkeypatch.setattr("consistentee.training.distributed.processes", lambda: one)
    done = run("train", "--model", backbone, "--data", data, "--output", checkpoint, *TRAINED_WITH)
    assert done.code == 0, done.err  # it is finished already
    assert ("layer ratio" in done.out) == is_main


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
    check_one_line(nowhere, "none: expected a local checkpoint folder")


def test_compare_prints_a_table_and_report_draws_it(
    run: Callable[..., Run], checkpoint: Path, backbone: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "compared"
    arguments = ["compare", "--model", backbone, "--data", data, "--output", output]
    done = run(*arguments, "--seeds", 1, "--epochs", 1, "--batch-size", 16)
    assert done.code == 0, done.err
    for word in ("ConsistentEE", "truncation", "oracle", "area", "1.5", "3.0"):
        assert word in done.out
    page = tmp_path / "report.html"
    done = run(
        *("report", checkpoint, "--data", data / "test.tsv", "--output", page),
        *("--comparison", output / "comparison.json"),
    )
    assert done.code == 0, done.err
    assert {f"report{suffix}" for suffix in (".html", ".png", ".json")} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert "truncation" in page.read_text(encoding="utf-8")
    wrong = run("report", checkpoint, "--data", data / "test.tsv", "--output", tmp_path / "x.pdf")
    check_one_line(wrong, "x.pdf", ".html")


def test_training_options_are_settings_and_fields(
    run: Callable[..., Run], backbone: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    done = run(
        *("train", "--model", backbone, "--data", data, "--output", output, "--epochs", 1),
        *("--estimator", "reinforce", "--samples", 4, "--reward", "oracle", "--folds", 2),
        *("--alpha-range", 0.01, 0.16, "--policy-input", "both", "--metric", "f1"),
    )
    assert done.code == 0, done.err
    config = json.loads((output / "config.json").read_text())
    assert config["alpha_range"] == [0.01, 0.16]
    assert config["alpha"] == pytest.approx(0.04)
    assert (config["policy_input"], config["metric"]) == ("both", "f1")
    log = json.loads((output / "training_log.json").read_text())
    settings = log["run"]["settings"]
    assert (settings["estimator"], settings["samples"]) == ("reinforce", 4)
    assert (settings["reward"], settings["folds"]) == ("oracle", 2)
    file = tmp_path / "figures.json"
    test = ("--data", data / "test.tsv")
    assert run("evaluate", output, *test, "--alpha", 0.16, "--json", file).code == 0
    assert "f1" in json.loads(file.read_text())
    check_one_line(run("evaluate", output, *test, "--alpha", 0.5), "alpha", "[0.01, 0.16]", "0.5")


def test_regression_from_the_command_line(
    run: Callable[..., Run], backbone: Path, tmp_path: Path
) -> None:
    """How much praise, in -1..1, from the share of such words."""
    choose = random.Random(3)
    for name, rows in (("train", 60), ("dev", 20)):
        lines = ["sentence\tlabel"]
        for _ in range(rows):
            words = choose.choices(PRAISE + BLAME, k=4)
            share = sum(word in PRAISE for word in words) / 2 - 1
            lines.append(f"{' '.join(words)}\t{share}")
        tsv(tmp_path / f"{name}.tsv", "\n".join(lines) + "\n")
    output = tmp_path / "model"
    options = ("--data", tmp_path, "--output", output, "--regression", "--epochs", 1)
    done = run("train", "--model", backbone, *options)
    assert done.code == 0, done.err
    assert "spearman" in done.out
    file = tmp_path / "figures.json"
    done = run("evaluate", output, "--data", tmp_path / "dev.tsv", "--json", file)
    assert done.code == 0, done.err
    figures = json.loads(file.read_text())
    assert "accuracy" not in figures
    assert -1 <= figures["spearman"] <= 1
    drop = ("--data", tmp_path / "dev.tsv", "--max-accuracy-drop", 0.5)
    check_one_line(run("calibrate", output, *drop), "max_accuracy_drop: expected a classifier")
    page = ("--data", tmp_path / "dev.tsv", "--output", tmp_path / "r.html")
    check_one_line(run("report", output, *page), "checkpoint: expected a classifier")


def test_backends(run: Callable[..., Run]) -> None:
    assert "torch" in run("backends").out


def test_a_loss_that_is_not_finite_ends_in_one_line(
    run: Callable[..., Run], backbone: Path, tmp_path: Path
) -> None:
    """Labels that float32 has no numbers for."""
    for name in ("train", "dev"):
        rows = [f"film\t{sign}1e39" for sign in ("", "-")] * 8
        tsv(tmp_path / f"{name}.tsv", "\n".join(["sentence\tlabel", *rows]) + "\n")
    output = tmp_path / "model"
    done = run(
        *("train", "--model", backbone, "--data", tmp_path, "--output", output, "--regression")
    )
    assert done.code == 2
    lines = done.err.splitlines()
    (message,) = (line for line in lines if line.startswith("consistentee: "))
    kept = tmp_path / "model.partial" / "trunk.held_out.checkpoints"
    assert message == (
        "consistentee: trunk.held_out: expected a finite loss, got nan at step 1; checkpoints are "
        f"kept in {kept}"
    )
    assert kept.is_dir()
    assert not output.exists()
    assert "Traceback" not in done.err


def tsv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def check_one_line(done: Run, *parts: str) -> None:
    assert done.code == 2
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("consistentee: ")
    for part in parts:
        assert part in done.err


def test_train_says_in_one_line_what_is_wrong(
    run: Callable[..., Run], data: Path, backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def train(*files: Path, **options: object) -> Run:
        named = [part for name, value in options.items() for part in (f"--{name}", value)]
        chosen = [part for file in files for part in ("--data", file)]
        return run("train", "--model", backbone, "--output", output, *chosen, *named)

    good = data / "dev.tsv"
    check_one_line(train(tmp_path / "none.tsv", good), "none.tsv")
    empty = tsv(tmp_path / "empty.tsv", "")
    check_one_line(train(empty, good), "empty.tsv")
    header = tsv(tmp_path / "header.tsv", "sentence\tlabel\n")
    check_one_line(train(header, good), "header.tsv", "at least one row")
    column = tsv(tmp_path / "column.tsv", "words\tlabel\na b\tx\n")
    check_one_line(train(column, good), "column.tsv", "sentence", "words")
    no_label = tsv(tmp_path / "nolabel.tsv", "sentence\tclass\na b\tx\n")
    check_one_line(train(no_label, good), "'label'", "class")
    one = tsv(tmp_path / "one.tsv", "sentence\tlabel\na b\tx\nc d\tx\n")
    check_one_line(train(one, one), "one.tsv", "two labels or more", "'x'")
    lonely = tsv(tmp_path / "lonely.tsv", "sentence\tlabel\na b\tpraise\nc\tpraise\nd\tblame\n")
    check_one_line(train(lonely, good), "two rows or more of each label", "'blame'")
    floats = tsv(tmp_path / "floats.jsonl", '{"text": "a", "label": 0.5}\n' * 4)
    check_one_line(train(floats, floats), "an integer or a string", "float")
    unknown = tsv(tmp_path / "unknown.tsv", "sentence\tlabel\na b\tpraise\nc\tneither\n")
    check_one_line(train(data / "train.tsv", unknown), "unknown.tsv", "neither")
    check_one_line(train(data, alpha=-1), "alpha", "-1")
    check_one_line(train(data, samples=0), "samples: expected at least 1, got 0")
    check_one_line(train(data, estimator="magic"), "estimator", "magic")
    check_one_line(train(), "data: expected a folder or files, or a task by name")
    check_one_line(train(data, task="imdb"), "task: expected one of rte", "imdb")
    check_one_line(train(task="mcid"), "mcid is on no hub")
    check_one_line(train(data, epochs=0), "epochs", "0")
    check_one_line(train(data, pooling="max"), "pooling", "max")
    check_one_line(train(data, seed="x"), "seed")
    check_one_line(train(data, model=tmp_path / "none"), "backbone: expected", "none")
    assert not output.exists()
    assert not (tmp_path / "out.partial").exists()


def test_train_needs_a_writable_output(
    run: Callable[..., Run], data: Path, backbone: Path, tmp_path: Path
) -> None:
    file = tsv(tmp_path / "file", "x")
    for output in (file, file / "inside"):
        done = run("train", "--model", backbone, "--data", data, "--output", output)
        check_one_line(done, "output", "file")
    full = tmp_path / "full"
    full.mkdir()
    tsv(full / "notes.txt", "mine")
    check_one_line(
        run("train", "--model", backbone, "--data", data, "--output", full), "output", "full"
    )
    assert os.listdir(full) == ["notes.txt"]  # noqa: PTH208


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
    unknown = tsv(tmp_path / "unknown.tsv", "sentence\tlabel\na film\tneither\n")
    check_one_line(run("evaluate", checkpoint, "--data", unknown), "neither")
    check_one_line(run("predict", checkpoint, test, "--output", tmp_path / "out.xml"), ".xml")
    check_one_line(run("predict", checkpoint, test, "--output", test / "out.tsv"), "test.tsv")
    check_one_line(run("predict", backbone, test, "--output", output), str(backbone))
    again = tsv(tmp_path / "again.tsv", "sentence\texit_layer\na film\t3\n")
    check_one_line(run("predict", checkpoint, again, "--output", output), "'exit_layer'")
    check_one_line(run("predict", checkpoint, "--output", output), "input")
    check_one_line(run("predict", checkpoint, test), "--output")
    check_one_line(run("fly"), "fly")
    assert not output.exists()
