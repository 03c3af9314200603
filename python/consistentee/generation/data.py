"""From files of prompts and completions to rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from consistentee.data.readers import read_rows
from consistentee.data.tables import check_columns, column_values
from consistentee_ext.generation.prompts import encode_prompt

DEV_SHARE = 0.1  # of a file of prompts alone
MAX_DEV_ROWS = 500


def load_rows(path: str | Path, completions: bool) -> Dataset:
    """Read one file of prompts.

    Args:
        path: a file ``.jsonl`` or of another suffix that `consistentee.data.readers.read_rows`
            knows, with the column ``prompt`` and, for `completions`, ``completion``.
        completions: whether there must be some.

    Returns:
        ``prompt`` and, where the file has them, ``completion``, strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a broken file, no rows, a missing column, or a row without text in it.
    """
    path = Path(path)
    rows = read_rows(path)
    wanted = ["prompt", "completion"] if completions else ["prompt"]
    check_columns(path, rows.column_names, wanted)
    if "completion" in rows.column_names and not completions:
        wanted.append("completion")
    return Dataset.from_dict({name: list(column_values(path, rows, name)) for name in wanted})


def load_folder(folder: str | Path, completions: bool) -> tuple[Dataset, Dataset]:
    """The rows of ``train.jsonl`` and ``dev.jsonl`` in a folder; see `load_rows`."""
    train, dev = (Path(folder) / f"{name}.jsonl" for name in ("train", "dev"))
    return load_rows(train, completions), load_rows(dev, completions)


def split_prompts(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Prompts to train on and dev prompts, `DEV_SHARE` of them, at random.

    Raises:
        ValueError: fewer than two.
    """
    if len(rows) < 2:
        raise ValueError(f"prompts: expected at least two, got {len(rows)}")
    order = np.random.default_rng(seed).permutation(len(rows))
    dev = min(max(1, round(DEV_SHARE * len(rows))), MAX_DEV_ROWS)
    return rows.select(order[dev:]), rows.select(order[:dev])


def encode_prompts(
    name: str, rows: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[list[int]]:
    """The token ids of each row's prompt.

    Raises:
        ValueError: one is longer than `longest`; `name` says whose rows they are.
    """
    prompts = [encode_prompt(tokenizer, text) for text in rows["prompt"]]
    for number, prompt in enumerate(prompts, start=1):
        if not 1 <= len(prompt) <= longest:
            raise ValueError(
                f"{name}: row {number}: expected a prompt of 1 to {longest} tokens, as the decoder "
                f"has no more positions for it and its answer, got {len(prompt)}"
            )
    return prompts


def encode_completions(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, end: int, max_new_tokens: int
) -> list[list[int]]:
    """The token ids of each row's completion with the end token, cut to `max_new_tokens`."""
    encoded = tokenizer(list(rows["completion"]), add_special_tokens=False)["input_ids"]
    return [[*ids, end][:max_new_tokens] for ids in encoded]


def answered_rows(
    name: str, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Dataset:
    """Rows to train on: ``input_ids``, ``prompt_length`` and ``length``.

    A row whose answer is one token is left out: it has no token that may leave.

    Raises:
        ValueError: no row is left; `name` says whose rows they are.
    """
    kept = [(list(p), list(a)) for p, a in zip(prompts, answers, strict=True) if len(a) > 1]
    if not kept:
        raise ValueError(f"{name}: expected answers of at least two tokens, got none")
    return Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in kept],
            "prompt_length": [len(prompt) for prompt, _ in kept],
            "length": [len(prompt) + len(answer) for prompt, answer in kept],
        }
    )


def tokens_of_rows(rows: Dataset) -> list[int]:
    """How many tokens of each row's answer may leave: all but the first."""
    lengths = zip(rows["length"], rows["prompt_length"], strict=True)
    return [length - prompt - 1 for length, prompt in lengths]


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A batch of B rows, padded on the right to S tokens.

    ``input_ids [B, S]``, ``prompt_lengths [B]``, ``lengths [B]`` int64; and ``hardness [B, S]``
    int64 where rows have it.
    """
    width = max(row["length"] for row in rows)
    batch = {
        "prompt_lengths": torch.tensor([row["prompt_length"] for row in rows]),
        "lengths": torch.tensor([row["length"] for row in rows]),
    }
    for name in ("input_ids", "hardness"):
        if name in rows[0]:
            padded = [[*row[name], *[0] * (width - len(row[name]))] for row in rows]
            batch[name] = torch.tensor(padded)
    return batch
