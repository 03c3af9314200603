"""Sets of labels from the command line: train, evaluate, calibrate, predict."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import accuracy_score, f1_score
from support.command_line import BLAME, PRAISE, REST, Run, check_one_line
from support.files import write
from support.models import tiny_classifier
from transformers import AutoTokenizer, pipeline

from consistentee.data.tables import load_splits, load_table, load_texts
from consistentee.evaluation.evaluate import load_model
from consistentee.training.prepare import train_on_splits
from consistentee.training.settings import TrainingSettings
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.names import MULTI_LABEL


def write_sets(path: Path, rows: int, seed: int) -> None:
    """A text has the labels of the kinds of words in it: both, one or none."""
    choose = random.Random(seed)
    lines = ["sentence\tlabels"]
    for _ in range(rows):
        kinds = [name for name in ("blame", "praise") if choose.random() < 0.5]
        words = [choose.choice(PRAISE if kind == "praise" else BLAME) for kind in kinds * 2]
        words += choose.choices(REST, k=choose.randint(1, 3))
        choose.shuffle(words)
        lines.append(f"{' '.join(words)}\t{'|'.join(kinds)}")
    write(path, "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for seed, (name, rows) in enumerate({"train": 160, "dev": 40, "test": 60}.items()):
        write_sets(folder / f"{name}.tsv", rows, seed)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path, backbone: Path) -> Path:
    output = tmp_path_factory.mktemp("run") / "model"
    splits = load_splits([data], problem_type=MULTI_LABEL)
    settings = TrainingSettings(epochs=8, learning_rate=1e-3, batch_size=16, policy_epochs=2)
    train_on_splits(
        str(backbone), splits, output, settings, problem_type=MULTI_LABEL, metric="f1_micro"
    )
    return output


def truth(path: Path) -> list[list[int]]:
    """Sets as rows of 0 and 1, blame first."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [[int(name in row["labels"]) for name in ("blame", "praise")] for row in rows]


def test_training_learns(model: Path) -> None:
    phases = json.loads((model / "training_log.json").read_text())["phases"]
    losses = phases["trunk"]["losses"]
    assert losses[-1] < losses[0] / 2
    assert len(phases["policies"]["dev"]["layer_f1_micro"]) == 3


def test_train_from_the_command_line(
    run: Callable[..., Run], data: Path, backbone: Path, tmp_path: Path
) -> None:
    """Also by phases that other trainings leave out: folds, and classifiers with policies."""
    output = tmp_path / "model"
    done = run(
        *("train", "--model", backbone, "--data", data, "--output", output, "--multi-label"),
        *("--epochs", 1, "--folds", 2, "--joint-epochs", 1, "--reward", "oracle"),
    )
    assert done.code == 0, done.err
    assert "f1_micro" in done.out
    config = json.loads((output / "config.json").read_text())
    assert config["problem_type"] == MULTI_LABEL
    assert config["id2label"] == {"0": "blame", "1": "praise"}
    assert config["metric"] == "f1_micro"


def test_evaluate_beside_scikit_learn(
    run: Callable[..., Run], model: Path, data: Path, tmp_path: Path
) -> None:
    """At full depth, from the Hugging Face model's own logits."""
    file = tmp_path / "figures.json"
    done = run("evaluate", model, "--data", data / "test.tsv", "--threshold", 1, "--json", file)
    assert done.code == 0, done.err
    assert "f1_macro" in done.out
    figures = json.loads(file.read_text())
    texts = load_table(data / "test.tsv", problem_type=MULTI_LABEL)["sentence1"][:]
    tokens = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    logits = load_model(model)(**tokens).logits
    predicted, labels = (logits.sigmoid() > 0.5).int().numpy(), truth(data / "test.tsv")
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "f1_micro": f1_score(labels, predicted, average="micro"),
        "f1_macro": f1_score(labels, predicted, average="macro"),
    }
    for name, value in expected.items():
        assert figures[name] == figures[f"full_depth_{name}"] == pytest.approx(value)
    assert figures["f1_micro"] > 0.6  # it has learnt something


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_predict_writes_labels_and_scores(
    run: Callable[..., Run], model: Path, data: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out{suffix}"
    done = run("predict", model, data / "test.tsv", "--output", output)
    assert done.code == 0, done.err
    rows, texts = load_texts(output)
    expected = FastEarlyExitEncoder.from_pretrained(model).predict(texts["sentence1"][:])
    p = expected.logits.sigmoid().tolist()
    assert rows["exit_layer"][:] in (
        expected.exit_layers.tolist(),
        list(map(str, expected.exit_layers.tolist())),
    )
    for row, (blame, praise) in zip(rows, p, strict=True):
        scores = json.loads(row["scores"])
        assert scores == pytest.approx({"blame": blame, "praise": praise}, abs=1e-6)
        names = [name for name in ("blame", "praise") if scores[name] > 0.5]
        assert row["prediction"] == "|".join(names)
    assert len(set(rows["prediction"])) > 2


def test_calibrate_keeps_the_sets_right(run: Callable[..., Run], model: Path, data: Path) -> None:
    dev = ("--data", data / "dev.tsv")
    done = run("calibrate", model, *dev, "--layer-ratio", 1.2)
    assert done.code == 0, done.err
    assert json.loads((model / "config.json").read_text())["threshold"] < 1.0
    done = run("calibrate", model, *dev, "--max-accuracy-drop", 0.5)
    assert done.code == 0, done.err


def test_jsonl_has_lists(run: Callable[..., Run], model: Path, tmp_path: Path) -> None:
    rows = [("good bad", ["praise", "blame"]), ("film", []), ("dull", ["blame"])]
    lines = [json.dumps({"text": text, "labels": labels}) for text, labels in rows]
    file, figures = write(tmp_path / "t.jsonl", "\n".join(lines)), tmp_path / "figures.json"
    done = run("evaluate", model, "--data", file, "--json", figures)
    assert done.code == 0, done.err
    joined = write(
        tmp_path / "t.tsv", "text\tlabels\ngood bad\tpraise | blame\nfilm\t\ndull\tblame\n"
    )
    same = tmp_path / "same.json"
    assert run("evaluate", model, "--data", joined, "--json", same).code == 0
    for name in ("accuracy", "f1_micro", "f1_macro"):
        assert json.loads(figures.read_text())[name] == json.loads(same.read_text())[name]


def test_what_is_wrong_in_one_line(
    run: Callable[..., Run], model: Path, data: Path, backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    train = ("train", "--model", backbone, "--output", output, "--multi-label")
    check_one_line(run(*train, "--data", data, "--regression"), "expected one of them")
    check_one_line(run(*train, "--task", "sst2"), "data: expected a folder", "sst2")
    check_one_line(run(*train, "--data", data, "--metric", "f1"), "metric", "f1_micro", "'f1'")
    twice = write(tmp_path / "twice.tsv", "text\tlabels\na\tx|y\nb\tx|x\n")
    check_one_line(run(*train, "--data", twice, "--data", twice), "row 2", "different names", "x|x")
    spelled = write(tmp_path / "spelled.tsv", "text\tlabels\na\tx|y\nb\tX\n")
    check_one_line(run(*train, "--data", spelled, "--data", spelled), "'X' and 'x'")
    one = write(tmp_path / "one.tsv", "text\tlabels\na\tx\nb\t\n")
    check_one_line(run(*train, "--data", one, "--data", one), "two labels or more", "['x']")
    number = write(tmp_path / "number.jsonl", '{"text": "a", "labels": 3}')
    check_one_line(run("evaluate", model, "--data", number), "row 1", "got 3")
    unknown = write(tmp_path / "unknown.tsv", "text\tlabels\na\tshrug\n")
    check_one_line(run("evaluate", model, "--data", unknown), "shrug")
    taken = write(tmp_path / "taken.tsv", "text\tscores\na\t1\n")
    check_one_line(run("predict", model, taken, "--output", tmp_path / "o.tsv"), "'scores'")
    page = ("--data", data / "test.tsv", "--output", tmp_path / "r.html")
    check_one_line(run("report", model, *page), "checkpoint: expected a classifier", MULTI_LABEL)
    assert not output.exists()


@pytest.mark.parametrize(
    ("problem_type", "classes"),
    [(None, 1), (None, 3), ("regression", 1), (MULTI_LABEL, 1), (MULTI_LABEL, 3)],
)
def test_hugging_face_heads_as_their_pipeline_has_them(
    run: Callable[..., Run], backbone: Path, tmp_path: Path, problem_type: str | None, classes: int
) -> None:
    """A cross-encoder of one label gives its probability, a regression its number."""
    folder, output = tmp_path / "model", tmp_path / "out.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    tiny_classifier(
        classes, vocab_size=len(tokenizer), max_position_embeddings=16, problem_type=problem_type
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = ["good film", "bad", "the plot was dull"]
    done = run("predict", folder, write(tmp_path / "t.tsv", "\n".join(["text", *texts]) + "\n"),
               "--output", output)  # fmt: skip
    assert done.code == 0, done.err
    rows, _ = load_texts(output)
    classify = pipeline("text-classification", str(folder), device="cpu")
    answers: Any = classify(texts, top_k=None)
    for row, found in zip(rows, answers, strict=True):
        scores = {label["label"]: label["score"] for label in found}
        if problem_type == MULTI_LABEL:
            assert json.loads(row["scores"]) == pytest.approx(scores, abs=1e-5)
            above = sorted(name for name, score in scores.items() if score > 0.5)
            assert row["prediction"] == "|".join(above)
        elif classes == 1:
            assert row["prediction"] == pytest.approx(scores["LABEL_0"], abs=1e-5)
        else:
            assert row["prediction"] == max(scores, key=scores.__getitem__)
