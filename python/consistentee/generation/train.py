"""Training of a decoder with exits: the way in."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from transformers import set_seed

from consistentee.atomic_files import Json
from consistentee.data.fingerprint import fingerprint
from consistentee.generation.adapters import add_adapters
from consistentee.generation.answers import write_answers
from consistentee.generation.backbone import load_backbone, with_exits
from consistentee.generation.data import (
    answered_rows,
    encode_completions,
    encode_prompts,
    tokens_of_rows,
)
from consistentee.generation.phases import GenerationPhases
from consistentee.generation.settings import DecoderFields, GenerationSettings
from consistentee.training.distributed import processes
from consistentee.training.run_folder import RunFolder

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_DEV_ROWS = 200  # that a phase is measured on
_TEXTS = ("prompt", "completion")


def train(
    backbone: str | os.PathLike[str],
    train_rows: Dataset,
    dev_rows: Dataset,
    output: str | os.PathLike[str],
    settings: GenerationSettings | None = None,
    every_layer: bool = False,
    **fields: Unpack[DecoderFields],
) -> Json:
    """Train a decoder whose tokens leave early. Called again after a kill, go on where it was.

    1. ``readouts``: translators, or the trunk, at full depth.
    2. ``policies``: on held-out rows, by the two-stream pass.
    3. ``joint`` and ``policies.2``, where the settings have tokens for them: readouts under sampled
       exits, then the policies again.

    Args:
        backbone: a decoder of `consistentee_ext.generation.configuration.BACKBONES`, see
            `consistentee.generation.backbone.load_backbone`.
        train_rows: of `consistentee.generation.data.load_rows`, with completions for the target
            ``gold``.
        dev_rows: the same, measured after each phase; `MAX_DEV_ROWS` of them.
        output: the folder to make: a checkpoint with its tokenizer and training_log.json. It
            appears at the end, complete.
        settings: how to train.
        every_layer: an exit behind each layer but the last, in place of ``exit_layers``.
        fields: of the model's configuration.

    Returns:
        The content of training_log.json: ``run``, all that determines the result; ``data``, rows
        and answer tokens of each part; ``pad_token``, where the end token was taken for it, else
        None; and ``phases``: for each its seconds, its losses and `dev_report`.

    Raises:
        ValueError: a setting or field outside its range, a prompt that is too long, no answers,
            another model than a decoder, or an output that cannot be written or holds something
            else.
        RuntimeError: a loss is not finite; checkpoints are kept.
    """
    settings = settings or GenerationSettings()
    decoder, tokenizer, padding = load_backbone(backbone)
    set_seed(settings.seed)
    if every_layer:
        fields = {**fields, "exit_layers": range(1, decoder.config.num_hidden_layers)}
    model = with_exits(decoder, tokenizer, **fields)
    del decoder
    adapters = add_adapters(model, settings.lora_rank) if settings.lora_rank else None
    model.to(processes().device)
    order = np.random.default_rng(settings.seed).permutation(len(train_rows))
    parts = {"train": train_rows.select(order), "dev": dev_rows.select(range(_dev_rows(dev_rows)))}
    positions = model.config.backbone.max_position_embeddings
    longest = positions - settings.max_new_tokens
    if longest < 1:
        raise ValueError(
            f"max_new_tokens: expected less than {positions}, the decoder's number of positions, "
            f"got {settings.max_new_tokens}"
        )
    prompts = {n: encode_prompts(n, rows, tokenizer, longest) for n, rows in parts.items()}
    identity = {
        "backbone": str(backbone),
        "config": {**fields, "exit_layers": model.config.exit_layers},
        "settings": asdict(settings),
        "train_rows": fingerprint(train_rows, _TEXTS),
        "dev_rows": fingerprint(dev_rows, _TEXTS),
    }
    with processes().main_process_first():
        run = RunFolder(output, identity)
    if (log := run.log()) is not None:
        return log
    most = settings.max_new_tokens
    rows: dict[str, Dataset] = {}
    for name, part in parts.items():
        if settings.target == "teacher":
            budget = _needed_tokens(settings) if name == "train" else None
            folder = run.work / f"{name}.answers"
            answers = write_answers(folder, model, prompts[name], most, budget)
        else:
            ends = model.config.eos_token_ids
            end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
            answers = encode_completions(part, tokenizer, end, most)
        rows[name] = answered_rows(name, prompts[name][: len(answers)], answers)
    learning, policy = _split(rows["train"], settings)
    used = {"learning": learning, "policies": policy, "dev": rows["dev"]}
    counts = {
        name: {"rows": len(part), "answer_tokens": sum(tokens_of_rows(part))}
        for name, part in used.items()
    }
    facts = {"data": counts, "pad_token": padding}
    phases = GenerationPhases(
        run, model, learning, policy, rows["dev"], tokenizer, settings, adapters
    )
    return phases.run_all(facts)


def _dev_rows(rows: Dataset) -> int:
    return min(len(rows), MAX_DEV_ROWS)


def _needed_tokens(settings: GenerationSettings) -> int:
    """Tokens of answers that no phase has to see twice."""
    learning, policy = settings.tokens, settings.policy_tokens
    if not settings.held_out:
        return max(learning, policy)
    return round(max(learning / (1 - settings.held_out), policy / settings.held_out))


def _split(rows: Dataset, settings: GenerationSettings) -> tuple[Dataset, Dataset]:
    """Rows to learn from and rows for the policies, no more of these than their budget needs."""
    if not settings.held_out:
        return rows, _first_tokens(rows, settings.policy_tokens)
    held_out = max(1, round(settings.held_out * len(rows)))
    if held_out == len(rows):
        raise ValueError(
            f"train: expected rows beside those held out for the policies, got {len(rows)} in all"
        )
    policy = rows.select(range(held_out))
    return rows.select(range(held_out, len(rows))), _first_tokens(policy, settings.policy_tokens)


def _first_tokens(rows: Dataset, budget: int) -> Dataset:
    """The first rows that have so many tokens that may leave, or all."""
    total = np.cumsum(tokens_of_rows(rows))
    return rows.select(range(min(len(rows), int(np.searchsorted(total, budget)) + 1)))
