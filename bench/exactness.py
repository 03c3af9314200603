"""Greedy tokens at full depth in float32, beside those of Hugging Face's model.

    python bench/exactness.py --model DECODER --prompts FILE --output runs/exactness

FILE is JSONL with a key ``prompt``. By default the engine answers, a batch at a time; with
``--reference`` the reference generator. Every batch is saved when it is done: the same command goes
on where it was stopped. A row counts as "tie" where the first tokens that differ follow logits
whose two best differ by less than 1e-3: the two compute sums in another order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from consistentee.atomic_files import Json, read_json, write_json
from consistentee.generation.answers import FULL_DEPTH
from consistentee.generation.backbone import load_backbone, with_exits
from consistentee.generation.data import load_rows
from consistentee_ext import FastEarlyExitDecoder
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.progress import progress_bar

NEAR = 1e-3
Answer = Callable[[list[list[int]], int], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--max-prompt", type=int, default=200, help="longer prompts are left out")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    theirs, tokenizer, _ = load_backbone(options.model)
    theirs.eval()
    texts = load_rows(options.prompts, completions=False)["prompt"][: 2 * options.count]
    rows = [encode_prompt(tokenizer, text) for text in texts]
    rows = [row for row in rows if len(row) <= options.max_prompt][: options.count]
    answer = by_reference(with_exits(theirs, tokenizer)) if options.reference else by_engine(theirs)
    options.output.mkdir(parents=True, exist_ok=True)
    found: list[Json] = []
    with progress_bar(len(rows), "exactness", "row") as bar:
        for first in range(0, len(rows), options.batch_size):
            batch = rows[first : first + options.batch_size]
            file = options.output / f"{first:05d}.json"
            if not file.exists():
                write_json(file, {"rows": compare(theirs, answer, batch, options.new)})
            found += read_json(file)["rows"]
            bar.update(len(batch))
    print(summary(found, options.new))


def by_engine(theirs: Any) -> Answer:
    ours = FastEarlyExitDecoder(theirs, threshold=1.0)

    def answer(rows: list[list[int]], new: int) -> list[list[int]]:
        inputs = padded(rows)
        width = inputs["input_ids"].shape[1]
        tokens = ours.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=0)
        found: list[list[int]] = tokens[:, width:].tolist()
        return found

    return answer


def by_reference(model: Any) -> Answer:
    model.eval()
    return lambda rows, new: generate(model, rows, new, FULL_DEPTH).tokens


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def compare(theirs: Any, answer: Answer, rows: list[list[int]], new: int) -> list[Json]:
    """Of each row the number of equal tokens, and how near the two best logits are behind them."""
    inputs = padded(rows)
    options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    expected = theirs.generate(**inputs, **options)
    tokens = expected.sequences[:, inputs["input_ids"].shape[1] :]
    return [
        row_of(row, torch.tensor(found), gap)
        for row, found, gap in zip(tokens, answer(rows, new), gaps(expected), strict=True)
    ]


def gaps(expected: Any) -> Tensor:
    """``[B, new]``, how far apart the two best logits are."""
    best = torch.stack([logits.float().topk(2).values for logits in expected.logits], dim=1)
    return best[..., 0] - best[..., 1]


def row_of(expected: Tensor, found: Tensor, gap: Tensor) -> Json:
    """Behind an answer's end both are filled up with token 0."""
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
