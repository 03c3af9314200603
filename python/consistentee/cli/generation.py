"""What commands do for decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consistentee.cli.options import (
    Checkpoint,
    ConfigOptions,
    GenerationOptions,
    Option,
    SettingsOptions,
    Threshold,
)
from consistentee.cli.tables import show

if TYPE_CHECKING:  # at run time it would import torch
    from consistentee.generation.settings import DecoderFields

# Of the options that are a classifier's too.
_SHARED = ("alpha", "estimator", "samples", "held_out", "batch_size")
_FIELDS = ("readout", "alpha")  # of the configuration


def train_decoder(
    model: str,
    output: Path,
    data: Sequence[Path] | None,
    paper: bool,
    decoder: GenerationOptions,
    config: ConfigOptions,
    settings: SettingsOptions,
    seed: int,
    others: Mapping[str, object],
) -> None:
    """``train --generation``; `others` are options that it does not take."""
    given = {**config.given(), **settings.given(), **decoder.given()}
    for name in {**{n: v for n, v in others.items() if v}, **given}:
        if name in others or (name not in _SHARED and name not in decoder.given()):
            raise ValueError(f"{name.replace('_', '-')}: expected none with --generation")
    from consistentee.generation.data import load_folder, load_rows, split_prompts
    from consistentee.generation.settings import PAPER_FIELDS, PAPER_SETTINGS, GenerationSettings
    from consistentee.generation.train import train
    from consistentee.training.distributed import processes

    prompts, exit_layers = given.pop("prompts", None), given.pop("exit_layer", None)
    fields: DecoderFields = {**PAPER_FIELDS} if paper else {}
    fields.update({name: given.pop(name) for name in _FIELDS if name in given})  # type: ignore[typeddict-item]
    if exit_layers is not None:
        fields["exit_layers"] = exit_layers
    known: dict[str, Any] = {**PAPER_SETTINGS} if paper else {}
    chosen = GenerationSettings(**{**known, **given, "seed": seed})
    if (prompts is None) == (not data) or len(data or ()) > 1:
        raise ValueError("data: expected one folder, or --prompts with a file, and not both")
    if prompts is None:
        assert data  # by the condition above
        rows = load_folder(data[0], completions=chosen.target == "gold")
    elif chosen.target == "gold":
        raise ValueError("prompts: expected --target teacher, as prompts alone have no completions")
    else:
        rows = split_prompts(load_rows(prompts, completions=False), seed)
    every_layer = paper and exit_layers is None
    log = train(model, *rows, output, chosen, every_layer, **fields)
    if not processes().is_main_process:
        return
    dev = list(log["phases"].values())[-1]["dev"]
    said = "the full model's text" if chosen.target == "teacher" else "the completions"
    found = {
        f"tokens as in {said}": f"{dev['agreement_at_exits']:.2%}",
        "full depth": f"{dev['agreement'][-1]:.2%}",
        "mean exit layer": f"{dev['mean_exit_layer']:.2f} of {dev['exit_layers'][-1]}",
        "cost ratio": f"{dev['cost_ratio']:.2f}",
        "mean memorized layer": f"{dev['mean_memorized_layer']:.2f}",
    }
    if log["pad_token"] is not None:
        found["pad token"] = f"{log['pad_token']}, the end token, as the tokenizer has none"
    show(f"{output}: on dev", found)


def generate(
    checkpoint: Checkpoint,
    prompts: Annotated[Path, typer.Argument(help="File with a column prompt: JSONL, CSV, ...")],
    output: Annotated[Path, Option(help="File to write: .jsonl, .csv or .parquet.")],
    threshold: Threshold = None,
    max_new_tokens: Annotated[int, Option(help="Answers are cut to so many tokens.")] = 128,
    batch_size: Annotated[int, Option(help="Rows that are decoded at a time.")] = 32,
    resume: Annotated[bool, Option("--resume", help="Go on where a stopped run was.")] = False,
) -> None:
    """Answer the prompts of a file, greedily; write them with answer, tokens and exit layer."""
    from consistentee.evaluation.generate import generate_file

    generate_file(checkpoint, prompts, output, threshold, max_new_tokens, batch_size, resume)
