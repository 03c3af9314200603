"""Random batches, heads and results for the ops that decide which rows leave."""

from __future__ import annotations

import torch

from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INF, NAN = float("inf"), float("nan")
# Of two classes: beyond what exp can take, and not finite.
EXTREME_LOGITS = torch.tensor(
    [
        *([1000, 999], [-1000, -1000]),
        *([INF, 0], [INF, INF], [-INF, 0], [-INF, -INF]),
        *([NAN, 0], [0, NAN], [INF, NAN]),
    ]
)


def make_batch(lengths: list[int], hidden_size: int, dtype: torch.dtype) -> PackedBatch:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    hidden = torch.randn(sum(lengths), hidden_size).to(dtype)
    return PackedBatch(hidden, cu_seqlens, torch.randperm(len(lengths) + 3)[: len(lengths)])


def with_absent_rows(batch: PackedBatch, places: list[int]) -> PackedBatch:
    """Absent rows, without tokens and with -1 as their id, before the rows that `places` name."""
    cu_seqlens, row_ids = batch.cu_seqlens.tolist(), batch.row_ids.tolist()
    for place in sorted(places, reverse=True):
        cu_seqlens.insert(place, cu_seqlens[place])
        row_ids.insert(place, -1)
    return PackedBatch(
        batch.hidden, torch.tensor(cu_seqlens, dtype=torch.int32), torch.tensor(row_ids)
    )


def compare_texts(tokens: torch.Tensor, lengths: list[int], firsts: list[int]) -> torch.Tensor:
    """``(u, v, |u - v|, u * v)`` of the means of the two texts of each row, in float64; `lengths`
    and those of the first texts are by row.
    """
    compared = []
    for row, first in zip(tokens.double().split(lengths), firsts, strict=True):
        u = row[:first].sum(0) / len(row[:first])
        v = row[first:].sum(0) / len(row[first:]) if first < len(row) else u
        compared.append(torch.cat((u, v, (u - v).abs(), u * v)))
    return torch.stack(compared)


def make_weights(
    hidden_size: int, classes: int, policy_input: str | None, policy_size: int = 32
) -> HeadWeights:
    classifier = (torch.randn(classes, hidden_size) / hidden_size**0.5, torch.randn(classes))
    if policy_input is None:
        return HeadWeights(*classifier)
    features = {"state": hidden_size, "prediction": 5, "both": hidden_size + 5}[policy_input]
    return HeadWeights(
        *classifier,
        torch.randn(policy_size, features) / features**0.5,
        torch.randn(policy_size),
        torch.randn(policy_size) / policy_size**0.5,
        torch.randn(1),
        policy_input,
    )


def decide_by(
    results: ExitResults,
    criterion: str,
    threshold: float | torch.Tensor,
    layer: int = 1,
    max_streak: int = 3,
    last: bool = False,
) -> ExitDecision:
    """A decision about rows of `results`; one number is the threshold of all of them."""
    thresholds = torch.as_tensor(threshold, dtype=torch.float32).expand(len(results.logits))
    return ExitDecision(criterion, thresholds, layer, max_streak, last)


def make_results(rows: int, classes: int, multi_label: bool = False) -> ExitResults:
    """As an earlier exit layer left them, of some rows; others have seen none."""
    results = ExitResults.empty(rows, classes)
    results.labels.copy_(torch.randint(-1, 1 if multi_label else classes, (rows,)))
    if multi_label:
        results.logits.normal_()
    results.streaks.copy_(torch.randint(0, 3, (rows,)))
    return results


def clone(results: ExitResults) -> ExitResults:
    return ExitResults(*(tensor.clone() for tensor in results))
