"""`add-exits` as a user types it, and its checkpoints where they are used."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from support.command_line import BLAME, PRAISE, REST, Run, check_one_line
from support.models import scramble
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

from consistentee_ext import FastEarlyExitEncoder


def save_classifier(folder: Path, backbone: Path, labels: int) -> Path:
    config = BertConfig.from_pretrained(backbone, num_labels=labels)
    scramble(BertForSequenceClassification(config), seed=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
    return folder


def sentences(rows: int, seed: int) -> list[str]:
    choose = random.Random(seed)
    words = [*PRAISE, *BLAME, *REST]
    return [" ".join(choose.choices(words, k=choose.randint(1, 6))) for _ in range(rows)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.tsv"
    lines = [f"{text}\tLABEL_{len(text) % 3}" for text in sentences(80, seed=1)]
    file.write_text("\n".join(["text\tkind", *lines]) + "\n")
    return file


def test_from_a_classifier_to_a_pipeline(
    run: Callable[..., Run], backbone: Path, texts: Path, tmp_path: Path
) -> None:
    plain, output = save_classifier(tmp_path / "plain", backbone, 3), tmp_path / "fast"
    command = ("add-exits", plain, "--data", texts, "--output", output, "--seed", 5)
    done = run(*command, "--max-disagreement", 0.1)
    assert done.code == 0, done.err
    assert "guaranteed" in done.out
    assert "accuracy" not in done.out
    log = json.loads((output / "training_log.json").read_text())["calibration"]
    assert f"{log['threshold']:.4f}" in done.out
    model = FastEarlyExitEncoder.from_pretrained(output)
    make: Any = pipeline  # its stub knows transformers' models alone
    classify = make(
        "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(output)
    )
    expected = make("text-classification", model=str(plain))(sentences(9, seed=3))
    model.threshold = 1.0
    found = classify(sentences(9, seed=3), batch_size=4)
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    torch.testing.assert_close(
        torch.tensor([row["score"] for row in found]),
        torch.tensor([row["score"] for row in expected]),
    )
    done = run("calibrate", output, "--data", texts, "--max-disagreement", 0.05)
    assert done.code == 0, done.err
    assert "other answers than at full depth" in done.out
    done = run("predict", output, texts, "--output", tmp_path / "out.tsv")
    assert done.code == 0, done.err


def test_labels_and_a_tuned_trunk(
    run: Callable[..., Run], backbone: Path, texts: Path, tmp_path: Path
) -> None:
    plain = save_classifier(tmp_path / "plain", backbone, 3)
    command = ("add-exits", plain, "--data", texts, "--data", texts, "--max-disagreement", 0.1)
    done = run(*command, "--label-column", "kind", "--tune-trunk", "--output", tmp_path / "fast")
    assert done.code == 0, done.err
    assert "on 80 rows held out" in " ".join(done.out.split())
    assert "accuracy" in done.out
    assert "full depth, changed by tuning" in done.out


def test_a_cross_encoder(run: Callable[..., Run], backbone: Path, tmp_path: Path) -> None:
    plain, output = save_classifier(tmp_path / "plain", backbone, 1), tmp_path / "fast"
    pairs = list(zip(sentences(80, seed=4), sentences(80, seed=5), strict=True))
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": a, "sentence": b}) + "\n" for a, b in pairs))
    command = ("add-exits", plain, "--data", file, "--output", output, "--max-disagreement", 0.1)
    done = run(*command)
    assert done.code == 0, done.err
    before, after = CrossEncoder(str(plain), device="cpu"), CrossEncoder(str(plain), device="cpu")
    fast = FastEarlyExitEncoder.from_pretrained(output)
    after[0].model = fast
    exits = torch.from_numpy(after.predict(pairs))
    fast.threshold = 1.0
    full = torch.from_numpy(after.predict(pairs))
    torch.testing.assert_close(full, torch.from_numpy(before.predict(pairs)), atol=1e-5, rtol=0)
    log = json.loads((output / "training_log.json").read_text())["calibration"]
    assert ((exits - full).abs() > 0.05).float().mean() <= 0.1 + log["disagreement"]
    ranked = after.rank("good film", sentences(9, seed=6))
    expected = before.rank("good film", sentences(9, seed=6))
    assert [hit["corpus_id"] for hit in ranked] == [hit["corpus_id"] for hit in expected]


def test_what_is_wrong_is_said_in_one_line(
    run: Callable[..., Run],
    backbone: Path,
    checkpoint: Path,
    texts: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    plain, output = save_classifier(tmp_path / "plain", backbone, 3), tmp_path / "fast"
    wish: tuple[object, ...] = ("--data", texts, "--output", output)
    check_one_line(run("add-exits", plain, *wish), "at least 299 rows held out", "got 80 rows")
    wish = (*wish, "--max-disagreement", 0.1)
    check_one_line(run("add-exits", backbone, *wish), "missing: classifier.bias")
    check_one_line(run("add-exits", checkpoint, *wish), "expected a classifier without exits")
    check_one_line(run("add-exits", tmp_path / "none", *wish), "none: expected a folder")
    check_one_line(run("add-exits", plain, *wish[2:]), "--data")
    few = tmp_path / "few.tsv"
    few.write_text("text\na film\n")
    check_one_line(run("add-exits", plain, "--data", few, *wish[2:]), "got 1 rows")
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("question\tsentence\na\tb\n")
    done = run("add-exits", plain, *wish, "--data", pairs)
    check_one_line(done, "pairs.tsv: expected ['sentence1'], got ['sentence1', 'sentence2']")
    done = run("add-exits", plain, *wish, "--data", data / "dev.tsv", "--label-column", "label")
    check_one_line(done, "texts.tsv: expected a column 'label'")
    done = run(
        "add-exits", plain, "--data", data / "train.tsv", *wish[2:], "--label-column", "label"
    )
    check_one_line(done, "labels: expected every label of the table")
    done = run("add-exits", plain, *wish, "--max-length", 99)
    check_one_line(done, "max_length: expected at most 16")
    done = run("add-exits", plain, *wish[:2], "--output", data, *wish[4:])
    check_one_line(done, "output: expected a new folder")
    assert not output.exists()
