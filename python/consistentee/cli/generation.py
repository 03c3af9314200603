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
from consistentee.cli.tables import show, show_generators, show_rules

if TYPE_CHECKING:  # at run time they would import torch
    from consistentee.atomic_files import Json
    from consistentee.generation.settings import DecoderFields, GenerationSettings

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
    given = _given(decoder, config, settings, others)
    from consistentee.generation.data import load_folder, load_rows, split_prompts
    from consistentee.generation.train import train
    from consistentee.training.distributed import processes

    prompts = given.pop("prompts", None)
    chosen, every_layer, fields = _chosen(given, paper, seed)
    if (prompts is None) == (not data) or len(data or ()) > 1:
        raise ValueError("data: expected one folder, or --prompts with a file, and not both")
    if prompts is None:
        assert data  # by the condition above
        rows = load_folder(data[0], completions=chosen.target == "gold")
    elif chosen.target == "gold":
        raise ValueError("prompts: expected --target teacher, as prompts alone have no completions")
    else:
        rows = split_prompts(load_rows(prompts, completions=False), seed)
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


def compare_decoders(
    model: str,
    output: Path,
    data: Path | None,
    paper: bool,
    seeds: Sequence[int],
    decoder: GenerationOptions,
    config: ConfigOptions,
    settings: SettingsOptions,
    others: Mapping[str, object],
) -> None:
    """``compare --generation``; `others` are options that it does not take."""
    given = _given(decoder, config, settings, {**others, "prompts": decoder.prompts})
    from consistentee.generation.comparison import compare_generators
    from consistentee.generation.data import load_folder, load_rows

    if data is None:
        raise ValueError("data: expected a folder with train, dev and test.jsonl, got none")
    chosen, every_layer, fields = _chosen(given, paper, seeds[0])
    rows = load_folder(data, completions=chosen.target == "gold")
    test = load_rows(data / "test.jsonl", completions=True)
    show_generators(
        str(data),
        compare_generators(model, *rows, test, output, chosen, seeds, every_layer, **fields),
    )


def _given(
    decoder: GenerationOptions,
    config: ConfigOptions,
    settings: SettingsOptions,
    others: Mapping[str, object],
) -> dict[str, Any]:
    """The options that the user gave.

    Raises:
        ValueError: one of them is not a decoder's.
    """
    given = {**config.given(), **settings.given(), **decoder.given()}
    for name in {**{n: v for n, v in others.items() if v}, **given}:
        if name in others or (name not in _SHARED and name not in decoder.given()):
            raise ValueError(f"{name.replace('_', '-')}: expected none with --generation")
    return given


def _chosen(
    given: dict[str, Any], paper: bool, seed: int
) -> tuple[GenerationSettings, bool, DecoderFields]:
    """The settings; whether there is an exit at every layer; and the configuration's fields."""
    from consistentee.generation.settings import PAPER_FIELDS, PAPER_SETTINGS, GenerationSettings

    exit_layers = given.pop("exit_layer", None)
    fields: DecoderFields = {**PAPER_FIELDS} if paper else {}
    fields.update({name: given.pop(name) for name in _FIELDS if name in given})  # type: ignore[typeddict-item]
    if exit_layers is not None:
        fields["exit_layers"] = exit_layers
    known: dict[str, Any] = {**PAPER_SETTINGS} if paper else {}
    settings = GenerationSettings(**{**known, **given, "seed": seed})
    return settings, paper and exit_layers is None, fields


def is_generator(checkpoint: str | Path) -> bool:
    """Whether config.json says that a checkpoint is a decoder with exits."""
    from transformers import PreTrainedConfig

    from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig

    fields, _ = PreTrainedConfig.get_config_dict(checkpoint)
    return fields.get("model_type") == ConsistentEECausalLMConfig.model_type


def refuse_generator(checkpoint: str | Path) -> None:
    """Raise ValueError where a command cannot take a decoder with exits."""
    if is_generator(checkpoint):
        raise ValueError(f"{checkpoint}: expected a classifier, got a generator")


def evaluate_decoder(
    checkpoint: str,
    data: Path,
    threshold: float | None,
    max_new_tokens: int | None,
    rules: bool,
    others: Mapping[str, object],
) -> Json:
    """``evaluate`` of a generator; `others` are options that it does not take."""
    _refuse(others)
    from consistentee.generation.data import load_rows
    from consistentee.generation.evaluate import evaluate_generator, load_generator

    rows = load_rows(data, completions=False)
    found, *_ = evaluate_generator(
        *load_generator(checkpoint), rows, threshold, max_new_tokens, rules
    )
    forced, free = found["teacher_forced"], found["free_running"]
    table = {
        "threshold": f"{found['threshold']:.4f}",
        "tokens as at full depth, on its text": f"{forced['agreement']:.2%}",
        "texts as at full depth": f"{free['identical']:.2%}",
        "tokens before the first other": f"{free['tokens_before_difference']:.1f}",
        "ROUGE-L to the text at full depth": f"{free['rouge']['rougeL']:.2f}",
    }
    if "rouge" in found:
        for name, title in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
            full = found["full_depth_rouge"][name]
            table[title] = f"{found['rouge'][name]:.2f}, at full depth {full:.2f}"
    table["mean exit layer"] = f"{free['mean_exit_layer']:.2f} of {found['num_layers']}"
    table["cost ratio"] = f"{free['cost_ratio']:.2f}"
    show(f"{checkpoint} on {data}, {found['rows']} rows", table)
    if rules:
        show_rules(found["rules"])
    return found


def calibrate_decoder(
    checkpoint: str | Path,
    data: Path,
    confidence: float,
    goals: Mapping[str, Any],
    others: Mapping[str, object],
) -> None:
    """``calibrate`` of a generator; `others` are options that it does not take."""
    _refuse(others)
    from consistentee.generation.calibrate import calibrate_generator
    from consistentee.generation.data import load_rows

    rows = load_rows(data, completions=False)
    found = calibrate_generator(checkpoint, rows, confidence=confidence, **goals)
    by_token = goals["max_rouge_loss"] is None
    loss = "tokens as not at full depth" if by_token else "1 - ROUGE-L to the text at full depth"
    table = {
        "threshold": f"{found.threshold:.4f}",
        f"{loss}, mean over texts": f"{found.loss:.2%}" if by_token else f"{found.loss:.4f}",
        "mean exit layer": f"{found.mean_exit_layer:.2f}",
        "cost ratio": f"{found.cost_ratio:.2f}",
    }
    show(f"{checkpoint} on {data}, {len(rows)} rows", table)


def report_decoder(
    checkpoint: str,
    data: Path,
    output: Path,
    threshold: float | None,
    max_new_tokens: int | None,
    others: Mapping[str, object],
) -> None:
    """``report`` of a generator; `others` are options that it does not take."""
    _refuse(others)
    from consistentee.generation.data import load_rows
    from consistentee.generation.evaluate import evaluate_generator, load_generator
    from consistentee.report.generator_page import write_generator_report

    rows = load_rows(data, completions=False)
    model, tokenizer = load_generator(checkpoint)
    found = evaluate_generator(model, tokenizer, rows, threshold, max_new_tokens)
    write_generator_report(
        output, f"{Path(checkpoint).name} on {data.name}", found, rows, tokenizer
    )


def _refuse(others: Mapping[str, object]) -> None:
    for name, value in others.items():
        if value:
            raise ValueError(f"{name}: expected none with a generator")


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
