"""Compares exit methods, each trained its own way with the same rows, backbone and epochs.

- ``ConsistentEE``: `consistentee.training.train.train`, exits by its policies.
- ``confidence``, ``entropy``, ``patience``, ``energy``: thresholds on one trunk trained on all rows
  (`train_trunk`), without policies and held-out rows.
- ``COSEE``: thresholds on energy, on a trunk trained for it
  (`consistentee.training.consistent_weights`); and by confidence on the same trunk.
- ``truncation``: the first k layers, fine-tuned by themselves.
- ``ConsistentEE, by confidence``: the weights of ConsistentEE with exits by confidence; the
  difference shows what the policies contribute.
- ``oracle``: the upper bound for exits on the weights of ConsistentEE.

A method's accuracy at a layer ratio is read off its curve of all thresholds on the test rows. No
label is used to match the ratio. ``tests/measures/test_exit_scores.py`` tests that in the engine
the same rows leave at the same layers.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import AutoConfig, DataCollatorWithPadding

from consistentee.atomic_files import Json, write_json
from consistentee.data.fingerprint import HASHED, fingerprint
from consistentee.evaluation.evaluate import load_model
from consistentee.measures.calibration import threshold_for_ratio
from consistentee.measures.curves import (
    Curve,
    failure_auroc,
    oracle_curve,
    threshold_curve,
    truncation_curve,
)
from consistentee.measures.exit_scores import at_exit, exit_scores, leave_at
from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs
from consistentee.model.modeling import ConsistentEEForSequenceClassification, ConsistentEEOutput
from consistentee.training.consistent_weights import ConsistentWeights
from consistentee.training.prepare import Prepared, prepare
from consistentee.training.settings import ConfigFields, TrainingSettings
from consistentee.training.train import train, train_trunk, without_policies
from consistentee_ext.criteria import PLAIN_CRITERIA
from consistentee_ext.names import SINGLE_LABEL

if TYPE_CHECKING:
    from typing_extensions import Unpack

RATIOS = (1.5, 2.0, 2.5, 3.0)
OPERATING_RATIO = 2.3
COMPARISON_FILE = "comparison.json"


def compare(
    backbone: str | os.PathLike[str],
    splits: DatasetDict,
    output: str | os.PathLike[str],
    settings: TrainingSettings,
    seeds: Sequence[int],
    max_length: int | None,
    **config: Unpack[ConfigFields],
) -> Json:
    """Train every method once for each seed; measure all on the test split (dev without one).

    Called again it resumes: finished trainings are not repeated, and results of finished seeds are
    read from their files.

    Args:
        backbone: a pretrained encoder: folder or hub name.
        splits: tables of text and labels, see `consistentee.data.tables.load_splits`.
        output: folder for ``comparison.json``, the result; ``seed-<seed>.json``, that of one seed;
            and the checkpoints, ``seed-<seed>/<method>``.
        settings: how to train; its seed is replaced by each of `seeds`.
        seeds: of split, initial heads, order of rows and dropout.
        max_length: rows are truncated to so many tokens, see `train_on_splits`.
        config: fields of `ConsistentEEConfig`.

    Returns:
        ``rows``, the number measured; ``seeds``; ``ratios``; ``num_layers``; ``methods``: for each,
        by name, ``accuracy`` (mean, standard deviation and the values of the seeds, at each ratio),
        ``area`` and ``full_depth``; ``operating_point``: test results at the threshold that gives
        dev a layer ratio of `OPERATING_RATIO`; ``failure_auroc``: for each seed, of three methods,
        how well each layer's score tells its right answers from wrong ones; ``curves``: for each
        seed, by method, the mean exit layers and the accuracies. Accuracies are in [0, 1].

    Raises:
        ValueError: no classes, no seed, a seed given twice, or as `train`.
    """
    problem_type = config.get("problem_type", SINGLE_LABEL)
    if problem_type != SINGLE_LABEL:
        raise ValueError(
            f"task: expected classes to compare exits by accuracy, got a {problem_type}"
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected one or more, all different, got {list(seeds)}")
    data = prepare(backbone, splits, max_length, config)
    runs = [
        _measured_seed(backbone, data, Path(output), replace(settings, seed=seed)) for seed in seeds
    ]
    result = {
        "rows": len(data.test),
        "seeds": list(seeds),
        "ratios": list(RATIOS),
        **_summary(runs),
    }
    write_json(Path(output) / COMPARISON_FILE, result)
    return result


def average(comparisons: Sequence[Json]) -> dict[str, list[Json]]:
    """Average each method's accuracy over tasks, at each ratio; mean and deviation over seeds.

    Args:
        comparisons: the result of `compare` for each task, with the same seeds.
    """
    return {
        name: [
            _spread(
                [
                    statistics.fmean(values)
                    for values in zip(
                        *(c["methods"][name]["accuracy"][at]["values"] for c in comparisons),
                        strict=True,
                    )
                ]
            )
            for at in range(len(RATIOS))
        ]
        for name in comparisons[0]["methods"]
    }


def _summary(runs: Sequence[Json]) -> Json:
    """The results of all seeds together."""
    curves = [{name: Curve(*points) for name, points in run["curves"].items()} for run in runs]
    return {
        "num_layers": runs[0]["num_layers"],
        "methods": {
            name: {
                "accuracy": [_spread([c[name].at_ratio(r) for c in curves]) for r in RATIOS],
                "area": _spread([c[name].area() for c in curves]),
                "full_depth": _spread([c[name].accuracy[-1] for c in curves]),
            }
            for name in curves[0]
        },
        "operating_point": {
            name: _spread([run["operating_point"][name] for run in runs])
            for name in runs[0]["operating_point"]
        },
        "failure_auroc": [run["failure_auroc"] for run in runs],
        "curves": [run["curves"] for run in runs],
    }


def _spread(values: list[float]) -> Json:
    """Mean and standard deviation over seeds; the deviation of one seed is 0."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": deviation, "values": values}


def _measured_seed(
    backbone: str | os.PathLike[str], data: Prepared, output: Path, settings: TrainingSettings
) -> Json:
    """One seed's result, read from its file if that has the same rows and settings."""
    file = output / f"seed-{settings.seed}.json"
    identity = {
        "config": data.config,
        "settings": asdict(settings),
        "data": [fingerprint(rows, HASHED) for rows in (data.train, data.dev, data.test)],
    }
    identity = json.loads(json.dumps(identity))  # as it is read back from the file
    if file.is_file():
        found: Json = json.loads(file.read_text(encoding="utf-8"))
        different = [key for key in identity if found["run"].get(key) != identity[key]]
        if different:
            raise ValueError(
                f"output: expected results of this run, got {file}, which has another "
                f"{', '.join(different)}"
            )
        return found
    result = {"run": identity, **_one_seed(backbone, data, file.with_suffix(""), settings)}
    write_json(file, result)
    return result


def _one_seed(
    backbone: str | os.PathLike[str], data: Prepared, folder: Path, settings: TrainingSettings
) -> Json:
    rows = (data.train, data.dev)
    train(backbone, *rows, folder / "consistentee", data.tokenizer, settings, **data.config)
    config = without_policies(data.config)
    train_trunk(backbone, *rows, folder / "trunk", data.tokenizer, settings, **config)
    ours, base = load_model(folder / "consistentee"), load_model(folder / "trunk")
    of_ours, correct = _outputs_on(ours, data.test, data)
    of_base, base_correct = _outputs_on(base, data.test, data)
    policy = exit_scores("policy", of_ours.exit_logits, of_ours.policy_logits)
    curves = {"ConsistentEE": threshold_curve(policy, correct)}
    for name in PLAIN_CRITERIA:
        scores = exit_scores(name, of_base.exit_logits, of_base.policy_logits)
        curves[name] = threshold_curve(scores, base_correct)
    own = folder / "cosee"
    train_trunk(
        backbone, *rows, own, data.tokenizer, settings, objective=ConsistentWeights(), **config
    )
    of_cosee, cosee_correct = _outputs_on(load_model(own), data.test, data)
    energy, sure = (
        exit_scores(name, of_cosee.exit_logits, of_cosee.policy_logits)
        for name in ("energy", "confidence")
    )
    curves["COSEE"] = threshold_curve(energy, cosee_correct)
    curves["COSEE, by confidence"] = threshold_curve(sure, cosee_correct)
    curves["truncation"] = _truncation(backbone, data, folder, settings, curves["confidence"])
    confidence = exit_scores("confidence", of_ours.exit_logits, of_ours.policy_logits)
    curves["ConsistentEE, by confidence"] = threshold_curve(confidence, correct)
    curves["oracle"] = oracle_curve(correct)

    on_dev, _ = _outputs_on(ours, data.dev, data)
    dev_scores = exit_scores("policy", on_dev.exit_logits, on_dev.policy_logits)
    exits = leave_at(policy, threshold_for_ratio(dev_scores, OPERATING_RATIO))
    right = correct.double()
    return {
        "num_layers": correct.shape[1],
        "failure_auroc": {
            "ConsistentEE": failure_auroc(policy, correct),
            "confidence": failure_auroc(
                exit_scores("confidence", of_base.exit_logits, of_base.policy_logits), base_correct
            ),
            "COSEE": failure_auroc(energy, cosee_correct),
        },
        "curves": {
            name: [list(curve.layers), list(curve.accuracy)] for name, curve in curves.items()
        },
        "operating_point": {
            "layer_ratio": correct.shape[1] / exits.double().mean().item(),
            "accuracy": at_exit(right, exits).mean().item(),
            "full_depth_accuracy": right[:, -1].mean().item(),
        },
    }


def _truncation(
    backbone: str | os.PathLike[str],
    data: Prepared,
    folder: Path,
    settings: TrainingSettings,
    full: Curve,
) -> Curve:
    """Train and measure truncated models at the depths just below and above ``L / ratio``.

    Full depth is the trunk's, whose curve is `full`.
    """
    num_layers = AutoConfig.from_pretrained(backbone, trust_remote_code=False).num_hidden_layers
    wanted = {edge(num_layers / r) for r in RATIOS for edge in (math.floor, math.ceil)}
    accuracy = {num_layers: full.accuracy[-1]}
    for layers in sorted(wanted - {0, num_layers}):
        where = folder / f"truncation-{layers}"
        rows = (data.train, data.dev)
        config = without_policies(data.config)
        train_trunk(backbone, *rows, where, data.tokenizer, settings, layers, **config)
        _, correct = _outputs_on(load_model(where), data.test, data)
        accuracy[layers] = correct[:, -1].double().mean().item()
    return truncation_curve(accuracy)


def _outputs_on(
    model: ConsistentEEForSequenceClassification, rows: Dataset, data: Prepared
) -> tuple[ConsistentEEOutput, Tensor]:
    output = exit_outputs(model, rows, DataCollatorWithPadding(data.tokenizer))
    return output, correct_layers(output.exit_logits, torch.tensor(rows["labels"]))
