"""The full model's own answers to prompts: what exits are trained to say, and measured against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from consistentee.atomic_files import read_json, write_json
from consistentee.training.distributed import processes
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.reference import Generated, generate
from consistentee_ext.generation.rules import ExitRule, PolicyRule
from consistentee_ext.progress import progress_bar

BATCH_SIZE = 64  # a step reads all weights, for however many rows
BLOCK_SIZE = 128  # prompts between two files
FULL_DEPTH = PolicyRule(1.0)


def write_answers(
    folder: Path,
    model: ConsistentEEForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    budget: int | None = None,
) -> list[list[int]]:
    """Greedy answers at full depth, kept in a folder: called again after a kill, it goes on.

    Args:
        folder: of this model's answers to these prompts; made.
        model: in evaluation mode.
        prompts: token ids.
        max_new_tokens: of each answer.
        budget: so many tokens that may leave are enough, see `answer_tokens`.

    Returns:
        The answers to all prompts or, with a budget, to the first of them.
    """
    found: list[list[int]] = []
    most = (max_new_tokens - 1) * len(prompts)
    total = most if budget is None else min(budget, most)
    stage = progress_bar(total, f"{folder.name} of the full model", "token")
    with processes().main_process_first(), stage as bar:
        folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(prompts), BLOCK_SIZE):
            if budget is not None and answer_tokens(found) >= budget:
                break
            block, file = prompts[first : first + BLOCK_SIZE], folder / f"{first}.json"
            if file.exists():
                found += read_json(file)["answers"]
                bar.update(answer_tokens(found) - bar.n)
                continue
            answers: list[list[int]] = [[] for _ in block]
            for rows in batches(block):
                batch = [block[row] for row in rows]
                tokens = generate(model, batch, max_new_tokens, FULL_DEPTH).tokens
                for row, answer in zip(rows, tokens, strict=True):
                    answers[row] = answer
                bar.update(answer_tokens(tokens))
            write_json(file, {"answers": answers})
            found += answers
    return found


def answer_tokens(answers: Sequence[Sequence[int]]) -> int:
    """How many tokens of answers may leave: all but the first of each."""
    return sum(len(answer) - 1 for answer in answers)


def generate_all(
    model: ConsistentEEForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    rule: ExitRule,
    name: str,
) -> Generated:
    """As `consistentee_ext.generation.reference.generate`, in batches, with progress.

    Args:
        model: in evaluation mode.
        prompts: token ids, any number of them.
        max_new_tokens: of each answer.
        rule: which tokens leave.
        name: of the stage.
    """
    empty: list[list[list[int]]] = [[[] for _ in prompts] for _ in Generated._fields]
    found = Generated(*empty)
    with progress_bar(len(prompts), name, "row") as bar:
        for rows in batches(prompts):
            batch = generate(model, [prompts[row] for row in rows], max_new_tokens, rule)
            for place, row in enumerate(rows):
                for whole, part in zip(found, batch, strict=True):
                    whole[row] = part[place]
            bar.update(len(rows))
    return found


def batches(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of prompts of like length, `BATCH_SIZE` at a time."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    return [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
