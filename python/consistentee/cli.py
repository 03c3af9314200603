"""The command line. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from consistentee_ext import backend_report

app = typer.Typer(
    help="Early-exit classifiers: train, evaluate, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Pooling(str, Enum):
    mean = "mean"
    cls = "cls"


class PolicyInput(str, Enum):
    prediction = "prediction"
    state = "state"
    both = "both"


Checkpoint = Annotated[str, typer.Argument(help="Checkpoint folder, or a name on the hub.")]
TextColumns = Annotated[
    list[str] | None,
    typer.Option("--text-column", help="Column of text; twice for pairs. Default: found by name."),
]
LabelColumn = Annotated[str, typer.Option(help="Column of labels.")]
Threshold = Annotated[
    float | None,
    typer.Option(help="Score above which a row leaves, in (0, 1]. Default: the checkpoint's."),
]


@app.command()
def train(
    model: Annotated[str, typer.Option(help="Pretrained encoder: a folder, or a name on the hub.")],
    data: Annotated[
        list[Path],
        typer.Option(help="Folder with train and dev, or the option twice: train file, dev file."),
    ],
    output: Annotated[Path, typer.Option(help="Checkpoint folder to make.")],
    pooling: Annotated[Pooling, typer.Option(help="What a head reads of a layer.")] = Pooling.mean,
    policy_input: Annotated[
        PolicyInput, typer.Option(help="What a policy reads.")
    ] = PolicyInput.both,
    alpha: Annotated[
        float | None, typer.Option(help="Price of a layer in the reward: higher is faster.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of phase 1.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens a row is cut at.")] = 128,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
    text_column: TextColumns = None,
    label_column: LabelColumn = "label",
) -> None:
    """Train a ConsistentEE classifier. Run it again after an interruption: it goes on."""
    from consistentee.data import load_splits
    from consistentee.runs import train_on_splits
    from consistentee.settings import TrainingSettings

    given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size}
    settings = TrainingSettings(
        seed=seed, **{name: value for name, value in given.items() if value is not None}
    )
    splits = load_splits(data, text_column or None, label_column)
    log = train_on_splits(
        model,
        splits,
        output,
        settings,
        max_length,
        pooling=pooling.value,
        policy_input=policy_input.value,
        **({} if alpha is None else {"alpha": alpha}),
    )
    dev = log["phases"]["joint"]["dev"]
    _show(
        f"{output}: on dev",
        {
            "accuracy": f"{dev['accuracy']:.2%}",
            "full depth": f"{dev['full_depth_accuracy']:.2%}",
            "mean exit layer": f"{dev['mean_exit_layer']:.2f} of {len(dev['layer_accuracy'])}",
            "layer ratio": f"{dev['layer_ratio']:.2f}",
        },
    )


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Option(help="File of labelled text.")],
    threshold: Threshold = None,
    json: Annotated[Path | None, typer.Option(help="File to write the figures to.")] = None,
    text_column: TextColumns = None,
    label_column: LabelColumn = "label",
) -> None:
    """Measure accuracy, layers and seconds, beside the same model at full depth."""
    from consistentee.data import load_table
    from consistentee.files import check_writable, write_json
    from consistentee.runs import evaluate_checkpoint

    if json is not None:
        check_writable(json)
    table = load_table(data, text_column or None, label_column)
    metrics = evaluate_checkpoint(checkpoint, table, threshold).metrics
    if json is not None:
        write_json(json, metrics)
    show_metrics(f"{checkpoint} on {data}", metrics)


@app.command()
def predict(
    checkpoint: Checkpoint,
    input: Annotated[Path, typer.Argument(help="File of text: TSV, CSV, JSONL or Parquet.")],
    output: Annotated[Path, typer.Option(help="File to write; its suffix says what kind.")],
    threshold: Threshold = None,
    text_column: TextColumns = None,
) -> None:
    """Classify the rows of a file; writes them with prediction, exit layer and score."""
    from consistentee.data import load_table
    from consistentee.files import check_table, write_table
    from consistentee.runs import predict_table

    check_table(output)
    table = load_table(input, text_column or None, need_label=False)
    write_table(output, predict_table(checkpoint, table, threshold))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to work in.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 42,
) -> None:
    """Train, evaluate and report on docstrings found on this machine; no download."""
    from consistentee.demo import run_demo

    metrics = run_demo(output, seed)
    show_metrics("Which library is a docstring from?", metrics)
    Console().print(f"report: {output / 'report.html'}")


@app.command()
def backends() -> None:
    """Say which backends can run here, and why the others cannot."""
    Console().print(backend_report(), highlight=False)


def show_metrics(title: str, metrics: dict[str, Any]) -> None:
    """The figures of an evaluation as a table."""
    full, fast = metrics["full_depth_seconds"], metrics["seconds"]
    _show(
        title,
        {
            "accuracy": f"{metrics['accuracy']:.2%}",
            "accuracy at full depth": f"{metrics['full_depth_accuracy']:.2%}",
            "mean exit layer": f"{metrics['mean_exit_layer']:.2f} of {metrics['num_layers']}",
            "layer ratio": f"{metrics['layer_ratio']:.2f}",
            "rows leaving at each layer": " ".join(map(str, metrics["exit_histogram"])),
            "seconds": f"{fast:.3f}",
            "seconds, Hugging Face at full depth": f"{full:.3f}",
            "wall-clock ratio": f"{full / fast:.2f}x",
            "": f"{metrics['rows']} rows, batches of {metrics['batch_size']}, {metrics['dtype']}, "
            f"{metrics['threads']} threads, backend {metrics['backend']}",
        },
    )


def _show(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def main() -> None:
    """Run the command line; every foreseeable failure is one line and exit code 2."""
    disable_progress_bar()  # of loading weights; training and prediction show their own
    try:
        code = app(standalone_mode=False)
    except (typer.TyperException, ValueError, TypeError, OSError, RuntimeError) as error:
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        line = " ".join(text.split()) or type(error).__name__
        sys.stderr.write(f"consistentee: {line}\n")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("consistentee: interrupted\n")
        code = 130
    sys.exit(code)
