"""Commands on a trained checkpoint: calibrate, evaluate, predict, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from consistentee.cli.generation import (
    calibrate_decoder,
    evaluate_decoder,
    is_generator,
    refuse_generator,
    report_decoder,
)
from consistentee.cli.options import (
    Alpha,
    Checkpoint,
    File,
    LabelColumn,
    MaxNewTokens,
    Option,
    TextColumns,
    Threshold,
    Tolerance,
)
from consistentee.cli.tables import quality_rows, show, show_metrics
from consistentee_ext.names import TOLERANCE


def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder; its config is written.")],
    data: Annotated[
        Path, Option("--data", help="File of text that the model was not trained on, with labels.")
    ],
    max_accuracy_drop: Annotated[
        float | None, Option(help="Lose at most this much accuracy, guaranteed.")
    ] = None,
    max_disagreement: Annotated[
        float | None,
        Option(help="Change at most this share of full depth's answers, guaranteed; no labels."),
    ] = None,
    max_token_change: Annotated[
        float | None,
        Option(help="Of a generator: change at most this share of a text's tokens, guaranteed."),
    ] = None,
    max_rouge_loss: Annotated[
        float | None,
        Option(help="Of a generator: 1 - ROUGE-L to full depth's text at most, guaranteed."),
    ] = None,
    confidence: Annotated[float, Option(help="Confidence of a guarantee.")] = 0.95,
    tolerance: Tolerance = TOLERANCE,
    layer_ratio: Annotated[
        float | None, Option(help="Reach at least this layer ratio: layers / mean exit layer.")
    ] = None,
    latency_ms: Annotated[
        float | None, Option(help="Take at most so many milliseconds for a call, on this machine.")
    ] = None,
    batch_size: Annotated[int, Option(help="Rows of a call, for --latency-ms.")] = 1,
    max_new_tokens: MaxNewTokens = None,
    level: Annotated[
        str | None,
        Option(help="Name to write the threshold under, beside others, with its guarantee."),
    ] = None,
    text_column: TextColumns = None,
    label_column: LabelColumn = None,
) -> None:
    """Find the exit threshold for one goal; write it, or a level, into the checkpoint's config."""
    from consistentee.data.tables import load_table, load_texts
    from consistentee.evaluation.checkpoints import (
        answer_type_of,
        calibrate_checkpoint,
        local_config,
    )

    local_config(checkpoint)  # raises
    of_generator = {
        "max_token_change": max_token_change,
        "max_rouge_loss": max_rouge_loss,
        "max_new_tokens": max_new_tokens,
    }
    if is_generator(checkpoint):
        others = {
            "max-accuracy-drop": max_accuracy_drop,
            "max-disagreement": max_disagreement,
            "layer-ratio": layer_ratio,
            "latency-ms": latency_ms,
            "level": level,
            "text-column": text_column,
            "label-column": label_column,
        }
        calibrate_decoder(checkpoint, data, confidence, of_generator, others)
        return
    for name, value in of_generator.items():
        if value is not None:
            name = name.replace("_", "-")
            raise ValueError(f"{name}: expected a generator's checkpoint beside it")
    if max_disagreement is None:
        table = load_table(data, text_column or None, label_column, answer_type_of(checkpoint))
    else:
        _, table = load_texts(data, text_column or None)
    found = calibrate_checkpoint(
        checkpoint,
        table,
        max_accuracy_drop=max_accuracy_drop,
        max_disagreement=max_disagreement,
        confidence=confidence,
        tolerance=tolerance,
        layer_ratio=layer_ratio,
        latency_ms=latency_ms,
        batch_size=batch_size,
        level=level,
    )
    show(
        f"{checkpoint} on {data}",
        {
            "threshold": f"{found.threshold:.4f}",
            "layer ratio": f"{found.layer_ratio:.2f}",
            "other answers than at full depth": f"{found.disagreement:.2%}",
            **({} if found.quality is None else quality_rows(found.quality)),
        },
    )


def evaluate(
    checkpoint: Checkpoint,
    data: File,
    threshold: Threshold = None,
    alpha: Alpha = None,
    max_new_tokens: MaxNewTokens = None,
    rules: Annotated[
        bool, Option("--rules", help="Compare a generator's policies with other exit rules.")
    ] = False,
    json: Annotated[Path | None, Option(help="File to write the results to.")] = None,
    text_column: TextColumns = None,
    label_column: LabelColumn = None,
) -> None:
    """Measure a checkpoint on a file, compared with itself at full depth.

    Of a classifier accuracy, layers and seconds; of a generator what its texts are worth.
    """
    from consistentee.atomic_files import check_writable, write_json
    from consistentee.data.tables import load_table
    from consistentee.evaluation.checkpoints import answer_type_of, evaluate_checkpoint

    if json is not None:
        check_writable(json)
    if is_generator(checkpoint):
        others = {
            "alpha": alpha,
            "text-column": text_column,
            "label-column": label_column,
        }
        figures = evaluate_decoder(checkpoint, data, threshold, max_new_tokens, rules, others)
        if json is not None:
            write_json(json, figures)
        return
    if rules or max_new_tokens is not None:
        name = "rules" if rules else "max-new-tokens"
        raise ValueError(f"{name}: expected a generator's checkpoint beside it")
    table = load_table(data, text_column or None, label_column, answer_type_of(checkpoint))
    metrics = evaluate_checkpoint(checkpoint, table, threshold, alpha).metrics
    if json is not None:
        write_json(json, metrics)
    show_metrics(f"{checkpoint} on {data}", metrics)


def predict(
    checkpoint: Checkpoint,
    input: Annotated[
        Path,
        typer.Argument(help="File of text: TSV, CSV, JSONL or Parquet; with --ray a folder too."),
    ],
    output: Annotated[
        Path,
        Option(help="File to write; its suffix decides the format. With --ray a folder."),
    ],
    threshold: Threshold = None,
    alpha: Alpha = None,
    text_column: TextColumns = None,
    resume: Annotated[bool, Option("--resume", help="Go on where a stopped run was.")] = False,
    ray: Annotated[
        str | None,
        Option(help="Run on Ray: local, auto for the cluster of this machine, or an address."),
    ] = None,
    id_column: Annotated[
        str | None, Option(help="With --ray: the one column to keep. Default: all.")
    ] = None,
) -> None:
    """Classify the rows of a file; write them with prediction, exit layer and score."""
    refuse_generator(checkpoint)
    if ray is not None:
        try:
            import ray as _  # noqa: F401
        except ImportError:
            raise RuntimeError(
                "predict: expected the package ray: pip install 'consistentee[ray]'"
            ) from None
        from consistentee.evaluation.predict_folder import predict_folder

        predict_folder(
            checkpoint,
            input,
            output,
            address=ray,
            id_column=id_column,
            text_columns=text_column or None,
            threshold=threshold,
            alpha=alpha,
            resume=resume,
        )
        return
    if id_column is not None:
        raise ValueError("id-column: expected --ray beside it")
    from consistentee.evaluation.predict import predict_file

    predict_file(checkpoint, input, output, text_column or None, threshold, alpha, resume)


def report(
    checkpoint: Checkpoint,
    data: File,
    output: Annotated[
        Path, Option(help="Page to write, .html; a .png and a .json get the same name.")
    ],
    comparison: Annotated[
        Path | None, Option(help="comparison.json of `compare`, to draw its curves too.")
    ] = None,
    threshold: Threshold = None,
    alpha: Alpha = None,
    max_new_tokens: MaxNewTokens = None,
    text_column: TextColumns = None,
    label_column: LabelColumn = None,
) -> None:
    """Write a page about early exit on a file.

    Of a classifier curves, exits, seconds; of a generator its texts, by exit layer.
    """
    from consistentee.atomic_files import read_json
    from consistentee.data.tables import load_table
    from consistentee.evaluation.checkpoints import answer_type_of
    from consistentee.report.measure import build_report
    from consistentee.report.write import check_report, write_report

    check_report(output)
    if is_generator(checkpoint):
        others = {
            "comparison": comparison,
            "alpha": alpha,
            "text-column": text_column,
            "label-column": label_column,
        }
        report_decoder(checkpoint, data, output, threshold, max_new_tokens, others)
        Console().print(f"report: {output}")
        return
    if max_new_tokens is not None:
        raise ValueError("max-new-tokens: expected a generator's checkpoint beside it")
    curves = None if comparison is None else read_json(comparison)
    table = load_table(data, text_column or None, label_column, answer_type_of(checkpoint))
    page = build_report(checkpoint, table, threshold=threshold, alpha=alpha, comparison=curves)
    write_report(output, page)
    Console().print(f"report: {output}")
