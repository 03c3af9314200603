"""examples/ as their first lines say, on small random models."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


def run_example(name: str, *arguments: object) -> list[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def classifier(folder: Path, backbone: Path, labels: int) -> Path:
    config = BertConfig.from_pretrained(backbone, num_labels=labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
    return folder


def test_all_are_tried_here_and_short() -> None:
    names = {path.name for path in EXAMPLES.iterdir()}
    assert names == {
        "add_exits.py", "classify.py", "cross_encoder.py", "pipeline.py", "train_your_own.py"
    }  # fmt: skip
    assert all(len((EXAMPLES / name).read_text().splitlines()) < 30 for name in names)


def test_classify(tmp_path: Path, backbone: Path) -> None:
    lines = run_example("classify.py", classifier(tmp_path, backbone, 3), "good", "bad bad")
    assert [line.split(": ")[1] for line in lines] == ["good", "bad bad"]
    assert all(line.startswith("LABEL_") and "3 of 3 layers" in line for line in lines)


def test_pipeline(tmp_path: Path, backbone: Path) -> None:
    folder = classifier(tmp_path, backbone, 3)
    lines = run_example("pipeline.py", folder, "good", "bad bad")
    expected = run_example("classify.py", folder, "good", "bad bad")
    assert lines == [line.replace(", 3 of 3 layers", "") for line in expected]


def test_cross_encoder(tmp_path: Path, backbone: Path) -> None:
    folder = classifier(tmp_path, backbone, 1)
    lines = run_example("cross_encoder.py", folder, "good", "bad", "good", "fine")
    scores = [float(line.split(": ")[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert sorted(line.split(": ")[1] for line in lines) == ["bad", "fine", "good"]


def test_train_your_own(tmp_path: Path, backbone: Path, data: Path) -> None:
    *_, last = run_example("train_your_own.py", backbone, data, tmp_path / "mine")
    assert last.endswith("of 3 layers a row")
    assert 1.0 <= float(last.split()[0]) <= 3.0


def test_add_exits(tmp_path: Path, backbone: Path) -> None:
    texts = tmp_path / "texts.csv"
    choose = random.Random(0)
    lines = [" ".join(choose.choices(["good", "bad", "film", "was"], k=5)) for _ in range(700)]
    texts.write_text("\n".join(["text", *lines]) + "\n")
    folder = classifier(tmp_path / "model", backbone, 3)
    *_, answer, last = run_example("add_exits.py", folder, texts, tmp_path / "mine")
    assert "LABEL_" in answer
    assert 1.0 <= float(last.split()[0]) <= 3.0
