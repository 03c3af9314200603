"""Commands that train: one model, or all methods of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

from consistentee.cli.generation import compare_decoders, train_decoder
from consistentee.cli.options import (
    ConfigOptions,
    GenerationOptions,
    LabelColumn,
    MaxLength,
    Model,
    Option,
    Paper,
    Seed,
    SettingsOptions,
    TextColumns,
)
from consistentee.cli.tables import figure, show, show_average, show_comparison
from consistentee_ext.names import MULTI_LABEL, REGRESSION, Metric


def train(
    *,
    model: Model,
    output: Annotated[Path, Option(help="Checkpoint folder to make.")],
    data: Annotated[
        list[Path] | None,
        Option(help="Folder with train and dev; or give it twice: train file, dev file."),
    ] = None,
    task: Annotated[
        str | None, Option(help="A task by name: its settings, and its data if there is no --data.")
    ] = None,
    paper: Paper = False,
    generation: Annotated[
        bool, Option("--generation", help="Train a decoder; --data has prompts and completions.")
    ] = False,
    decoder: GenerationOptions,
    config: ConfigOptions,
    settings: SettingsOptions,
    metric: Annotated[Metric | None, Option(help="Metric of the dev rows.")] = None,
    regression: Annotated[
        bool, Option("--regression", help="Predict numbers; labels are numbers.")
    ] = False,
    multi_label: Annotated[
        bool,
        Option("--multi-label", help="Predict sets of labels; column labels: names joined by |."),
    ] = False,
    max_length: MaxLength = None,
    seed: Seed = 42,
    text_column: TextColumns = None,
    label_column: LabelColumn = None,
) -> None:
    """Train a ConsistentEE classifier or generator. Run again, the command resumes."""
    if generation:
        others = {
            "task": task,
            "metric": metric,
            "regression": regression,
            "multi-label": multi_label,
            "max-length": max_length,
            "text-column": text_column,
            "label-column": label_column,
        }
        train_decoder(model, output, data, paper, decoder, config, settings, seed, others)
        return
    _refuse_decoder_options(decoder)
    from consistentee.data.tables import load_splits
    from consistentee.data.tasks import Fields, find_task, load_task
    from consistentee.measures.metrics import Quality
    from consistentee.training.distributed import processes
    from consistentee.training.prepare import train_on_splits
    from consistentee.training.settings import ConfigFields, TrainingSettings

    known_task = None if task is None else find_task(task)
    if known_task is None and paper:
        raise ValueError("paper: expected a task beside it, got none")
    if known_task is None and not data:
        raise ValueError("data: expected a folder or files, or a task by name, got neither")
    known_settings: Fields = {}
    known_config: Fields = {}
    if known_task is not None:
        known_settings, known_config = known_task.training(paper)
    if regression and multi_label:
        raise ValueError("regression, multi-label: expected one of them at most, got both")
    if regression:
        known_config = {**known_config, "problem_type": REGRESSION, "metric": "spearman"}
    if multi_label:
        known_config = {**known_config, "problem_type": MULTI_LABEL, "metric": "f1_micro"}
    chosen_config = cast(ConfigFields, {**known_config, **config.given()})
    if metric is not None:
        chosen_config["metric"] = metric
    chosen_settings = TrainingSettings(**{**known_settings, **settings.given(), "seed": seed})
    if data or known_task is None:
        problem_type = chosen_config.get("problem_type")
        splits = load_splits(data or (), text_column or None, label_column, problem_type)
    elif chosen_config.get("problem_type") != known_task.problem_type:
        raise ValueError(f"data: expected a folder or files, as {task} has other labels, got none")
    else:
        splits = load_task(known_task)
    log = train_on_splits(model, splits, output, chosen_settings, max_length, **chosen_config)
    if not processes().is_main_process:
        return
    dev = list(log["phases"].values())[-1]["dev"]
    quality = Quality.from_figures(dev, chosen_config.get("metric", "accuracy"))
    show(
        f"{output}: on dev",
        {
            quality.metric: figure(quality.metric, quality.at_exits),
            "full depth": figure(quality.metric, quality.at_full_depth),
            "mean exit layer": f"{dev['mean_exit_layer']:.2f} of {len(quality.by_layer)}",
            "layer ratio": f"{dev['layer_ratio']:.2f}",
        },
    )


def compare(
    *,
    model: Model,
    output: Annotated[Path, Option(help="Folder for checkpoints and comparison.json.")],
    data: Annotated[
        Path | None, Option(help="Folder with train and dev; for several tasks, one folder each.")
    ] = None,
    task: Annotated[
        list[str] | None, Option(help="A task by name; several are also averaged.")
    ] = None,
    seeds: Annotated[int, Option(min=1, help="How many seeds: 42, 43 and so on.")] = 3,
    seed: Annotated[int, Option(help="The first of them.")] = 42,
    paper: Paper = False,
    generation: Annotated[
        bool, Option("--generation", help="Compare exit rules of a decoder; --data has test.jsonl.")
    ] = False,
    decoder: GenerationOptions,
    config: ConfigOptions,
    settings: SettingsOptions,
    max_length: MaxLength = None,
    text_column: TextColumns = None,
    label_column: LabelColumn = None,
) -> None:
    """Train ConsistentEE and the methods it is compared with; print accuracy at layer ratios.

    With --generation: train a decoder, and print the ROUGE-L of its texts at cost ratios.
    """
    if generation:
        others = {
            "task": task,
            "max-length": max_length,
            "text-column": text_column,
            "label-column": label_column,
        }
        chosen_seeds = range(seed, seed + seeds)
        compare_decoders(
            model, output, data, paper, chosen_seeds, decoder, config, settings, others
        )
        return
    _refuse_decoder_options(decoder)
    from consistentee.data.tables import load_splits
    from consistentee.data.tasks import Fields, Task, find_task, load_task
    from consistentee.evaluation.comparison import average
    from consistentee.evaluation.comparison import compare as compare_exits
    from consistentee.training.settings import ConfigFields, TrainingSettings

    known_tasks: list[Task | None] = [find_task(name) for name in task or ()]
    if not known_tasks and (paper or data is None):
        raise ValueError("task: expected a task by name, or --data without --paper, got none")
    results = []
    for known_task in known_tasks or [None]:
        known_settings: Fields = {}
        known_config: Fields = {}
        title, where, folder = str(data), data, output
        if known_task is not None:
            known_settings, known_config = known_task.training(paper)
            title, folder = known_task.name, output / known_task.name
            if data is not None and (len(known_tasks) > 1 or (data / title).is_dir()):
                where = data / title
        chosen_settings = TrainingSettings(**{**known_settings, **settings.given(), "seed": seed})
        chosen_config = cast(ConfigFields, {**known_config, **config.given()})
        if where is not None:
            splits = load_splits([where], text_column or None, label_column)
        else:
            assert known_task is not None  # one of the two is there
            splits = load_task(known_task)
        chosen = range(seed, seed + seeds)
        result = compare_exits(
            model, splits, folder, chosen_settings, chosen, max_length, **chosen_config
        )
        show_comparison(title, result)
        results.append(result)
    if len(results) > 1:
        show_average(average(results), results[0])


def _refuse_decoder_options(decoder: GenerationOptions) -> None:
    for name in decoder.given():
        raise ValueError(f"{name.replace('_', '-')}: expected --generation beside it")
