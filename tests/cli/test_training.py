"""`train` and `compare` as a user types them, and the one line where they cannot."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import BLAME, PRAISE, TRAINED_WITH, Run, check_one_line
from support.files import write


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
        write(tmp_path / f"{name}.tsv", "\n".join(lines) + "\n")
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


def test_a_loss_that_is_not_finite_ends_in_one_line(
    run: Callable[..., Run], backbone: Path, tmp_path: Path
) -> None:
    """Labels that float32 has no numbers for."""
    for name in ("train", "dev"):
        rows = [f"film\t{sign}1e39" for sign in ("", "-")] * 8
        write(tmp_path / f"{name}.tsv", "\n".join(["sentence\tlabel", *rows]) + "\n")
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
    empty = write(tmp_path / "empty.tsv", "")
    check_one_line(train(empty, good), "empty.tsv")
    header = write(tmp_path / "header.tsv", "sentence\tlabel\n")
    check_one_line(train(header, good), "header.tsv", "at least one row")
    column = write(tmp_path / "column.tsv", "words\tlabel\na b\tx\n")
    check_one_line(train(column, good), "column.tsv", "sentence", "words")
    no_label = write(tmp_path / "nolabel.tsv", "sentence\tclass\na b\tx\n")
    check_one_line(train(no_label, good), "'label'", "class")
    one = write(tmp_path / "one.tsv", "sentence\tlabel\na b\tx\nc d\tx\n")
    check_one_line(train(one, one), "one.tsv", "two labels or more", "['x']")
    lonely = write(tmp_path / "lonely.tsv", "sentence\tlabel\na b\tpraise\nc\tpraise\nd\tblame\n")
    check_one_line(train(lonely, good), "two rows or more of each label", "'blame'")
    floats = write(tmp_path / "floats.jsonl", '{"text": "a", "label": 0.5}\n' * 4)
    check_one_line(train(floats, floats), "an integer or a string", "float")
    unknown = write(tmp_path / "unknown.tsv", "sentence\tlabel\na b\tpraise\nc\tneither\n")
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
    check_one_line(train(data, model=tmp_path / "none"), "none: expected a folder")
    assert not output.exists()
    assert not (tmp_path / "out.partial").exists()


def test_train_needs_a_writable_output(
    run: Callable[..., Run], data: Path, backbone: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "file", "x")
    for output in (file, file / "inside"):
        done = run("train", "--model", backbone, "--data", data, "--output", output)
        check_one_line(done, "output", "file")
    full = tmp_path / "full"
    full.mkdir()
    write(full / "notes.txt", "mine")
    check_one_line(
        run("train", "--model", backbone, "--data", data, "--output", full), "output", "full"
    )
    assert os.listdir(full) == ["notes.txt"]  # noqa: PTH208
