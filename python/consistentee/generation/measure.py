"""What exits do to answers that are given: agreement token by token, layers, cost.

Letters: N tokens that decide, E exits, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from consistentee.atomic_files import Json
from consistentee.generation.answers import FULL_DEPTH
from consistentee.generation.data import collate
from consistentee.generation.passes import target_tokens
from consistentee.generation.streams import Streams, two_streams
from consistentee.measures.hardness import memorized_layer
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.rules import Arrival, ExitRule, PolicyRule, ThresholdRule
from consistentee_ext.progress import progress_bar

BATCH_SIZE = 16  # rows; each exit has logits of all their tokens


class Forced(NamedTuple):
    """Tokens of answers that were read as they stand, row by row.

    Attributes:
        right: ``[N]`` bool, where the exit's best next token is the answer's.
        exit_layers: ``[N]`` int64.
        tokens: for each row the number of its tokens, N in all.
    """

    right: Tensor
    exit_layers: Tensor
    tokens: list[int]


def right_exits(model: ConsistentEEForCausalLM, rows: Dataset, bf16: bool = False) -> Tensor:
    """Which exits' best next token is the answer's, at full depth: ``[N, E + 1]`` bool.

    Args:
        model: its last layer is in the last place.
        rows: of `consistentee.generation.data.answered_rows`; tokens are in their order.
        bf16: run the layers under bfloat16 autocast; the LM head, whose best token decides, stays
            float32.
    """
    found = []
    for batch, targets in _batches(rows, "exits of the answers"):
        states = _run(model, batch, FULL_DEPTH, bf16).states.unbind(dim=1)
        found.append(
            torch.stack([model.logits(state).argmax(dim=-1) == targets for state in states], dim=1)
        )
    return torch.cat(found).cpu()


def exit_scores(
    model: ConsistentEEForCausalLM,
    rows: Dataset,
    rules: Mapping[str, type[ThresholdRule]],
) -> tuple[dict[str, Tensor], Tensor]:
    """The score of each exit by several rules, at full depth, and what is right.

    Args:
        model: whose exits they are.
        rows: as in `right_exits`.
        rules: by name.

    Returns:
        ``[N, E]`` for each rule, and the result of `right_exits`.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in rules}
    for batch, _ in _batches(rows, "scores of the exits"):
        recorder = _Recorder(rules)
        _run(model, batch, recorder, bf16=False)
        for name, scores in recorder.scores.items():
            found[name].append(torch.stack(scores, dim=1))
    all_scores = {name: torch.cat(parts).cpu() for name, parts in found.items()}
    return all_scores, right_exits(model, rows)


class _Recorder:
    """No token leaves; the scores of each exit are kept."""

    def __init__(self, rules: Mapping[str, type[ThresholdRule]]) -> None:
        self.rules = rules
        self.scores: dict[str, list[Tensor]] = {name: [] for name in rules}

    def __call__(self, arrival: Arrival) -> Tensor:
        for name, rule in self.rules.items():
            self.scores[name].append(rule.score(arrival).float())
        return torch.zeros_like(arrival.rows, dtype=torch.bool)

    def reads_logits(self, layer: int) -> bool:
        return False


def memorized_layers(model: ConsistentEEForCausalLM, right: Tensor) -> Tensor:
    """The smallest exit layer from which on all are right; L where the last is wrong, ``[N]``.

    Args:
        model: whose exits they are.
        right: ``[N, E + 1]``, from `right_exits`.
    """
    layers = torch.tensor([*model.config.exit_layers, model.config.num_layers])
    return layers[memorized_layer(right) - 1]


def with_hardness(model: ConsistentEEForCausalLM, rows: Dataset, bf16: bool = False) -> Dataset:
    """The rows with a column ``hardness``, as long as ``input_ids``.

    It has the memorized layer of each token that decides, and 0 elsewhere. `bf16` as in
    `right_exits`.
    """
    layers = iter(memorized_layers(model, right_exits(model, rows, bf16)).tolist())

    def spread(row: dict[str, Any]) -> list[int]:
        before, behind = row["prompt_length"], row["length"]
        return [0] * before + [next(layers) for _ in range(before, behind - 1)] + [0]

    return rows.add_column("hardness", [spread(row) for row in rows])


def teacher_forced(
    model: ConsistentEEForCausalLM, rows: Dataset, rule: ExitRule, bf16: bool = False
) -> Forced:
    """Read the rows' answers as they stand; tokens leave by a rule.

    Args:
        model: whose exits they are.
        rows: of `consistentee.generation.data.answered_rows`.
        rule: which tokens leave.
        bf16: as in `right_exits`.
    """
    right, exit_layers = [], []
    exits = torch.tensor(model.config.exit_layers, device=model.device)
    for batch, targets in _batches(rows, "answers with exits"):
        found = _run(model, batch, rule, bf16)
        left = (exits < found.exit_layers[:, None]).sum(dim=1)
        states = found.states[torch.arange(len(left), device=left.device), left]
        right.append(model.logits(states).argmax(dim=-1) == targets)
        exit_layers.append(found.exit_layers)
    tokens = [n - p - 1 for n, p in zip(rows["length"], rows["prompt_length"], strict=True)]
    return Forced(torch.cat(right).cpu(), torch.cat(exit_layers).cpu(), tokens)


def cost_ratio(
    model: ConsistentEEForCausalLM, mean_exit_layer: float, mean_heads: float = 1.0
) -> float:
    """What full depth costs over what exits do, in weights read or multiplied.

    ``(L + head) / (mean exit layer + heads * head)``, where head is the LM head's cost in layers.

    Args:
        model: whose layers they are.
        mean_exit_layer: over tokens.
        mean_heads: how often the LM head runs for a token.
    """
    head = model.trunk.head_layers
    return (model.config.num_layers + head) / (mean_exit_layer + mean_heads * head)


def dev_report(model: ConsistentEEForCausalLM, rows: Dataset, bf16: bool = False) -> Json:
    """A phase's figures: of each exit at full depth, and of exits by policy, teacher-forced.

    - ``exit_layers`` with ``agreement``, the share of tokens that each of them gets right;
    - ``mean_memorized_layer``;
    - ``agreement_at_exits``, ``mean_exit_layer`` and ``cost_ratio`` at the model's threshold.

    `bf16` as in `right_exits`.
    """
    right = right_exits(model, rows, bf16)
    forced = teacher_forced(model, rows, PolicyRule(model.config.threshold), bf16)
    mean = forced.exit_layers.double().mean().item()
    return {
        "exit_layers": [*model.config.exit_layers, model.config.num_layers],
        "agreement": right.double().mean(dim=0).tolist(),
        "mean_memorized_layer": memorized_layers(model, right).double().mean().item(),
        "agreement_at_exits": forced.right.double().mean().item(),
        "mean_exit_layer": mean,
        "cost_ratio": cost_ratio(model, mean),
    }


@torch.no_grad()
def _run(
    model: ConsistentEEForCausalLM, batch: dict[str, Tensor], rule: ExitRule, bf16: bool
) -> Streams:
    of_device = {name: values.to(model.device) for name, values in batch.items()}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        return two_streams(model, **of_device, rule=rule)


def _batches(rows: Dataset, name: str) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The rows in their order, and the tokens that should come."""
    needed = rows.select_columns(["input_ids", "prompt_length", "length"])
    with progress_bar(len(rows), name, "row") as bar:
        for part in needed.iter(BATCH_SIZE):
            values = zip(*part.values(), strict=True)
            each = [dict(zip(part, of_row, strict=True)) for of_row in values]
            batch = collate(each)
            yield batch, target_tokens(**batch)
            bar.update(len(each))
