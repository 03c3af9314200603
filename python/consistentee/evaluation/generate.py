"""Answers the prompts of a file."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from consistentee.atomic_files import check_table, write_table
from consistentee.data.fingerprint import fingerprint
from consistentee.data.readers import read_rows
from consistentee.data.tables import check_columns, column_values
from consistentee.evaluation.kept_rows import KeptRows, checkpoint_version
from consistentee_ext import FastEarlyExitDecoder, GeneratedText

ADDED = ("answer", "answer_tokens", "mean_exit_layer")


def generate_file(
    checkpoint: str | os.PathLike[str],
    prompts: str | Path,
    output: str | Path,
    threshold: float | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    resume: bool = False,
) -> None:
    """Write a file with the columns of `prompts` and those of `ADDED`.

    ``answer_tokens`` is their number, ``mean_exit_layer`` is over all of them. Until the file is
    whole, the answers are kept in ``<output>.resume``.

    Args:
        checkpoint: a folder or hub name.
        prompts: a file with the column ``prompt``, see `consistentee.data.readers.read_rows`;
            without columns of these names.
        output: its suffix decides the format; not ``.tsv``, as answers may have line breaks.
        threshold: None for the checkpoint's.
        max_new_tokens: of each answer.
        batch_size: rows that are decoded at a time.
        resume: go on with the answers that a stopped run left, if there are any.

    Raises:
        ValueError: a broken file, no rows, a missing column, a row without text in it, a prompt
            that is too long, or a stopped run left answers and `resume` is False.
    """
    prompts, output = Path(prompts), Path(output)
    check_table(output)
    if output.suffix.lower() == ".tsv":
        raise ValueError(
            f"{output}: expected .jsonl, .csv or .parquet, as answers may have line breaks, "
            "got '.tsv'"
        )
    rows = read_rows(prompts)
    check_columns(prompts, rows.column_names, ["prompt"])
    taken = [name for name in ADDED if name in rows.column_names]
    if taken:
        raise ValueError(f"prompts: expected no column {taken[0]!r}, which the output adds")
    texts = list(column_values(prompts, rows, "prompt"))
    decoder = FastEarlyExitDecoder.from_pretrained(checkpoint, threshold=threshold)
    run = {
        "checkpoint": checkpoint_version(checkpoint, decoder.config),
        "threshold": decoder.threshold,
        "max_new_tokens": max_new_tokens,
        "dtype": str(decoder.dtype),
        "prompts": fingerprint(rows, rows.column_names),
    }
    kept = KeptRows(output, json.loads(json.dumps(run)), len(rows), resume)
    found = decoder.iterate_texts(
        texts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        show_progress_bar=True,
        first_row=kept.number,
    )
    with closing(found):
        for text in found:
            kept.append(_columns(text))
    answers = Dataset.from_dict(kept.columns(list(ADDED)))
    write_table(output, concatenate_datasets([rows, answers], axis=1))
    kept.remove()


def _columns(found: GeneratedText) -> dict[str, list[Any]]:
    count = len(found.tokens)
    values = (found.text, count, sum(found.exit_layers) / count)
    return {name: [value] for name, value in zip(ADDED, values, strict=True)}
