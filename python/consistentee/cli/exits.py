"""The command that gives a trained classifier exits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consistentee.cli.options import Option, Seed, TextColumns, Tolerance
from consistentee.cli.tables import figure, show
from consistentee_ext.names import TOLERANCE, Pooling


def add_exits(
    model: Annotated[
        str, typer.Argument(help="A trained classifier without exits: a folder, or a hub's name.")
    ],
    data: Annotated[
        list[Path], Option(help="File of texts like those to be classified; may be given again.")
    ],
    output: Annotated[Path, Option(help="Checkpoint folder to make.")],
    tune_trunk: Annotated[
        bool, Option("--tune-trunk", help="Train the trunk too: faster, other answers.")
    ] = False,
    max_disagreement: Annotated[
        float, Option(help="At most this share of answers differs from full depth's, guaranteed.")
    ] = 0.01,
    confidence: Annotated[float, Option(help="Confidence of that guarantee.")] = 0.95,
    tolerance: Tolerance = TOLERANCE,
    pooling: Annotated[Pooling, Option(help="What the new heads read.")] = "mean",
    max_length: Annotated[
        int | None,
        Option(
            help="Rows are cut to so many tokens, also where the checkpoint is used. Default: what "
            "model and tokenizer take."
        ),
    ] = None,
    seed: Seed = 42,
    text_column: TextColumns = None,
    label_column: Annotated[
        str | None, Option(help="Column of labels, to learn from them too. Default: none.")
    ] = None,
) -> None:
    """Add exits to a classifier, from texts without labels. Run again, it goes on."""
    from datasets import concatenate_datasets

    from consistentee.data.tables import load_table, load_texts
    from consistentee.evaluation.checkpoints import answer_type_of
    from consistentee.training.add_exits import add_exits as add
    from consistentee.training.settings import AddExitsSettings

    settings = AddExitsSettings(
        tune_trunk=tune_trunk,
        max_disagreement=max_disagreement,
        confidence=confidence,
        tolerance=tolerance,
        pooling=pooling,
        seed=seed,
    )
    columns = text_column or None
    if label_column is None:
        tables = [load_texts(path, columns)[1] for path in data]
    else:
        kind = answer_type_of(model)
        tables = [load_table(path, columns, label_column, kind) for path in data]
    for path, table in zip(data, tables, strict=True):
        if table.column_names != tables[0].column_names:
            raise ValueError(f"{path}: expected {tables[0].column_names}, got {table.column_names}")
    log = add(model, concatenate_datasets(tables), output, settings, max_length)
    found = log["calibration"]
    rows = {
        "threshold": f"{found['threshold']:.4f}",
        "layer ratio": f"{found['layer_ratio']:.2f}",
        "other answers than at full depth": f"{found['disagreement']:.2%}",
        "guaranteed": f"at most {max_disagreement:.2%}, confidence {confidence:.0%}",
    }
    if tune_trunk:
        rows["full depth, changed by tuning"] = f"{found['full_depth_disagreement']:.2%}"
    for metric in ("accuracy", "f1_micro", "spearman"):
        if metric in found:
            full = figure(metric, found[f"full_depth_{metric}"])
            rows[metric] = f"{figure(metric, found[metric])}, at full depth {full}"
    show(f"{output}: on {found['rows']} rows held out", rows)
