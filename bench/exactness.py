"""Greedy tokens at full depth in float32, beside those of Hugging Face's model.

    python bench/exactness.py --model DIR --prompts FILE --count 500 --output runs/exactness

FILE has a prompt a line, or JSON with a field of `FIELDS`. Every batch is
saved when it is done: the same command goes on where it was stopped. A row counts as
"tie" where the first tokens that differ follow logits whose two best differ by less than 1e-3.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer

from consistentee.atomic_files import Json, read_json, write_json
from consistentee_ext import FastEarlyExitDecoder
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.progress import progress_bar

FIELDS = ("prompt", "question", "instruction", "text")
NEAR = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--max-prompt", type=int, default=200, help="longer prompts are left out")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    rows = [encode_prompt(tokenizer, text_of(line)) for line in lines[: 2 * options.count]]
    rows = [row for row in rows if len(row) <= options.max_prompt][: options.count]
    options.output.mkdir(parents=True, exist_ok=True)
    theirs = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    ours = FastEarlyExitDecoder(theirs, threshold=1.0)
    found: list[Json] = []
    with progress_bar(len(rows), "exactness", "row", True, 0) as bar:
        for first in range(0, len(rows), options.batch_size):
            batch = rows[first : first + options.batch_size]
            file = options.output / f"{first:05d}.json"
            if not file.exists():
                write_json(file, {"rows": compare(theirs, ours, batch, options.new)})
            found += read_json(file)["rows"]
            bar.update(len(batch))
    print(summary(found, options.new))


def text_of(line: str) -> str:
    if not line.startswith("{"):
        return line
    fields = json.loads(line)
    return next(str(fields[name]) for name in FIELDS if name in fields)


def compare(theirs: Any, ours: Any, rows: list[list[int]], new: int) -> list[Json]:
    """Of each row the number of equal tokens, and how near the two best logits are behind them."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    inputs = {"input_ids": ids, "attention_mask": mask, "return_dict_in_generate": True}
    expected = theirs.generate(**inputs, **options, output_logits=True)
    tokens = ours.generate(**inputs, **options).sequences[:, width:]
    return [
        row_of(*pair)
        for pair in zip(expected.sequences[:, width:], tokens, gaps(expected), strict=True)
    ]


def gaps(expected: Any) -> Tensor:
    """``[B, new]``, how far apart the two best logits are."""
    best = torch.stack([logits.float().topk(2).values for logits in expected.logits], dim=1)
    return best[..., 0] - best[..., 1]


def row_of(expected: Tensor, found: Tensor, gap: Tensor) -> Json:
    length = max(len(expected), len(found))
    pairs = [pad(tokens, (0, length - len(tokens))) for tokens in (expected, found)]
    differ = (pairs[0] != pairs[1]).nonzero()
    if len(differ) == 0:
        return {"equal": length, "gap": None}
    equal = int(differ[0])
    return {"equal": equal, "gap": float(gap[equal]) if equal < len(gap) else 1.0}


def summary(rows: list[Json], new: int) -> str:
    differing = [row for row in rows if row["gap"] is not None]
    ties = [row for row in differing if row["gap"] < NEAR]
    return (
        f"{len(rows)} prompts, {new} new tokens at most: {len(rows) - len(differing)} equal, "
        f"{len(ties)} behind a tie, {len(differing) - len(ties)} else"
    )


if __name__ == "__main__":
    main()
