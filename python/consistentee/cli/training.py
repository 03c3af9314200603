"""Commands that train: one model, or all that exits are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from consistentee.cli.options import (
    Alpha,
    AlphaRange,
    BatchSize,
    Epochs,
    Epsilon,
    EstimatorOption,
    Folds,
    HeldOut,
    Iterations,
    JointEpochs,
    LabelColumn,
    MaxLength,
    Metric,
    Model,
    Option,
    Paper,
    PolicyInputOption,
    PoolingOption,
    RewardOption,
    Samples,
    Seed,
    TextColumns,
    given_fields,
)
from consistentee.cli.tables import figure, show, show_average, show_comparison


def train(
    model: Model,
    output: Annotated[Path, Option(help="Checkpoint folder to make.")],
    data: Annotated[
        list[Path] | None,
        Option(help="Folder with train and dev, or the option twice: train file, dev file."),
    ] = None,
    task: Annotated[
        str | None, Option(help="A task by name: its settings, and its data where --data is not.")
    ] = None,
    paper: Paper = False,
    pooling: PoolingOption = None,
    policy_input: PolicyInputOption = None,
    alpha: Alpha = None,
    alpha_range: AlphaRange = None,
    estimator: EstimatorOption = None,
    samples: Samples = None,
    epsilon: Epsilon = None,
    reward: RewardOption = None,
    held_out: HeldOut = None,
    folds: Folds = None,
    iterations: Iterations = None,
    epochs: Epochs = None,
    joint_epochs: JointEpochs = None,
    batch_size: BatchSize = None,
    metric: Annotated[Metric | None, Option("--metric", help="What dev is measured by.")] = None,
    regression: Annotated[
        bool, Option("--regression", help="Labels are numbers to predict.")
    ] = False,
    max_length: MaxLength = 128,
    seed: Seed = 42,
    text_column: TextColumns = None,
    label_column: LabelColumn = "label",
) -> None:
    """Train a ConsistentEE classifier. Run it again after an interruption: it goes on."""
    given = given_fields(locals())
    from consistentee.data import load_splits
    from consistentee.runs import train_on_splits, training_fields
    from consistentee.tasks import find_task, load_task

    known: list[dict[str, Any]] = []
    if task is not None:
        found = find_task(task)
        known = [found.config, dict(found.paper if paper else found.settings)]
    elif paper:
        raise ValueError("paper: expected a task beside it, got none")
    elif not data:
        raise ValueError("data: expected a folder or files, or a task by name, got neither")
    if regression:
        known.append({"problem_type": "regression", "metric": "spearman"})
    settings, config = training_fields(*known, given)
    splits = (
        load_splits(
            data, text_column or None, label_column, config.get("problem_type") == "regression"
        )
        if data
        else load_task(find_task(task or ""))
    )
    log = train_on_splits(model, splits, output, settings, max_length, **config)
    dev = list(log["phases"].values())[-1]["dev"]
    measured = config.get("metric", "accuracy")
    show(
        f"{output}: on dev",
        {
            measured: figure(measured, dev[measured]),
            "full depth": figure(measured, dev[f"full_depth_{measured}"]),
            "mean exit layer": f"{dev['mean_exit_layer']:.2f} of {len(dev[f'layer_{measured}'])}",
            "layer ratio": f"{dev['layer_ratio']:.2f}",
        },
    )


def compare(
    model: Model,
    output: Annotated[Path, Option(help="Folder for checkpoints and comparison.json.")],
    data: Annotated[
        Path | None, Option(help="Folder with train and dev; of several tasks, one folder each.")
    ] = None,
    task: Annotated[
        list[str] | None, Option(help="A task by name; several are averaged as well.")
    ] = None,
    seeds: Annotated[int, Option(min=1, help="How many seeds: 42, 43 and so on.")] = 3,
    seed: Annotated[int, Option(help="The first of them.")] = 42,
    paper: Paper = False,
    pooling: PoolingOption = None,
    policy_input: PolicyInputOption = None,
    alpha: Alpha = None,
    alpha_range: AlphaRange = None,
    estimator: EstimatorOption = None,
    samples: Samples = None,
    epsilon: Epsilon = None,
    reward: RewardOption = None,
    held_out: HeldOut = None,
    folds: Folds = None,
    iterations: Iterations = None,
    epochs: Epochs = None,
    joint_epochs: JointEpochs = None,
    batch_size: BatchSize = None,
    max_length: MaxLength = 128,
    text_column: TextColumns = None,
    label_column: LabelColumn = "label",
) -> None:
    """Train ConsistentEE and the exits it is compared with; print accuracy at layer ratios."""
    given = given_fields(locals())
    from consistentee.comparison import average
    from consistentee.comparison import compare as compare_exits
    from consistentee.data import load_splits
    from consistentee.runs import training_fields
    from consistentee.tasks import find_task, load_task

    if not task and (paper or data is None):
        raise ValueError("task: expected a task by name, or --data without --paper, got none")
    results = []
    names: list[str | None] = [*task] if task else [None]
    for name in names:
        known: list[dict[str, Any]] = []
        where, folder = data, output
        if name is not None:
            found = find_task(name)
            known = [found.config, dict(found.paper if paper else found.settings)]
            if data is not None and (len(names) > 1 or (data / name).is_dir()):
                where = data / name
            folder = output / name
        settings, config = training_fields(*known, given)
        splits = (
            load_task(find_task(name or ""))
            if where is None
            else load_splits([where], text_column or None, label_column)
        )
        chosen = range(seed, seed + seeds)
        result = compare_exits(model, splits, folder, settings, chosen, max_length, **config)
        show_comparison(name or str(data), result)
        results.append(result)
    if len(results) > 1:
        show_average(average(results), results[0])
