"""The exit step: a program decides a row, the last one plans where those that stay go; the copy."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from consistentee_ext.packed import ExitState, HeadWeights
from consistentee_ext.triton_kernels.common import FUSED, TILE, ends_last

HEAD_TILE = 8192  # elements of a head's weights, that a program takes at a time
PLAN_ROWS = 1024  # that the plan sums at a time


class SurvivorPlan(NamedTuple):
    """Which rows stay and where they go: csrc/include/consistentee/plan.cuh has the same."""

    keep: Tensor  # [B] int32, 1 or 0
    offsets: Tensor  # [B] int32: a row's first token in the new batch, -1 where the row leaves
    cu_seqlens: Tensor  # [B+1] int32
    row_ids: Tensor  # [B] int64
    totals: Tensor  # [2] int32


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """tanh to 3e-7: a polynomial near zero, where ``1 - 2 / (exp(2|x|) + 1)`` would cancel."""
    z = x * x
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    small = p * z * x + x
    magnitude = tl.abs(x)
    # Beyond 10 it is 1, and exp might overflow; tl.minimum would lose a NaN.
    capped = tl.where(magnitude > 10.0, 10.0, magnitude)
    large = 1.0 - 2.0 / (tl.exp(2.0 * capped) + 1.0)
    return tl.where(magnitude < 0.625, small, tl.where(x < 0.0, -large, large))


@triton.jit
def _argmax(
    values: tl.tensor, present: tl.tensor, index: tl.tensor, size: tl.constexpr
) -> tl.tensor:
    """The first of the largest; a NaN is larger than any number, as in torch.argmax."""
    nan = present & (values != values)
    first_nan = tl.min(tl.where(nan, index, size), axis=0)
    most = tl.max(tl.where(present & (values == values), values, float("-inf")), axis=0)
    first = tl.min(tl.where(present & (values == most), index, size), axis=0)
    return tl.where(first_nan < size, first_nan, first)


@triton.jit
def _predict(
    z: tl.tensor,
    c: tl.tensor,
    log_classes: tl.tensor,
    classes: tl.constexpr,
    block: tl.constexpr,
) -> tl.tensor:
    """Label, top, margin, certainty and logit margin of logits: see `prediction_statistics`."""
    present = c < classes
    label = _argmax(z, present, c, block)
    highest = tl.sum(tl.where(c == label, z, 0.0), axis=0)
    if classes == 1:
        top = 1.0 + (highest - highest)  # not a number where the logit is not finite
        margin = tl.full([], 0.0, tl.float32)
        return label, top, margin, tl.full([], 1.0, tl.float32), margin
    else:  # noqa: RET505 - what follows a return is compiled, too
        rest = tl.where(present & (c != label), z, float("-inf"))
        logit_margin = highest - tl.max(rest, axis=0)
        shifted = tl.where(present, z - highest, 0.0)
        power = tl.where(present, tl.exp(shifted), 0.0)
        total = tl.sum(power, axis=0)
        entropy = tl.log(total) - tl.sum(power * shifted, axis=0) / total
        top = 1.0 / total
        margin = top - tl.exp(-logit_margin) / total
        return label, top, margin, 1.0 - entropy / log_classes, logit_margin


@triton.jit
def _plan_survivors(
    plan: tl.tuple, cu_seqlens: tl.tensor, row_ids: tl.tensor, rows: tl.tensor, block: tl.constexpr
) -> None:
    """Where the rows that stay go: a prefix sum over them, in their order."""
    stayed, tokens = 0, 0
    for first in range(0, rows, block):
        row = first + tl.arange(0, block)
        stays = tl.load(plan.keep + row, mask=row < rows, other=0, volatile=True) != 0
        length = tl.load(cu_seqlens + row + 1, mask=stays, other=0)
        length -= tl.load(cu_seqlens + row, mask=stays, other=0)
        place = stayed + tl.cumsum(stays.to(tl.int32), axis=0)
        end = tokens + tl.cumsum(length, axis=0)
        tl.store(plan.row_ids + place - 1, tl.load(row_ids + row, mask=stays), mask=stays)
        tl.store(plan.cu_seqlens + place, end, mask=stays)
        tl.store(plan.offsets + row, tl.where(stays, end - length, -1), mask=row < rows)
        stayed += tl.sum(stays.to(tl.int32), axis=0)
        tokens += tl.sum(length, axis=0)
    for first in range(0, rows, block):
        row = first + tl.arange(0, block)
        beyond = (row >= stayed) & (row < rows)
        tl.store(plan.row_ids + row, -1, mask=beyond)
        tl.store(plan.cu_seqlens + row + 1, tokens, mask=beyond)
    tl.store(plan.cu_seqlens, 0)
    tl.store(plan.totals, stayed)
    tl.store(plan.totals + 1, tokens)


@triton.jit(do_not_specialize=["layer", "most_streak"])
def _exit_rows(
    pooled: tl.tensor,
    cu_seqlens: tl.tensor,
    row_ids: tl.tensor,
    weights: tl.tuple,
    threshold: tl.tensor,
    layer: tl.tensor,
    most_streak: tl.tensor,
    log_classes: tl.tensor,
    results: tl.tuple,
    plan: tl.tuple,
    finished: tl.tensor,
    hidden_size: tl.constexpr,
    classes: tl.constexpr,
    policy_size: tl.constexpr,
    block_h: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
    block_rows: tl.constexpr,
    reads_state: tl.constexpr,
    reads_prediction: tl.constexpr,
    criterion: tl.constexpr,
    last: tl.constexpr,
) -> None:
    """Grid (B): a program decides a row; the one that ends last plans where the survivors go."""
    uses_policy: tl.constexpr = criterion == 0 and (reads_state or reads_prediction)
    read: tl.constexpr = hidden_size if reads_state else 0
    features: tl.constexpr = read + (5 if reads_prediction else 0)
    row = tl.program_id(0).to(tl.int64)
    row_id = tl.load(row_ids + row)
    stays = 0
    if row_id >= 0:
        previous_label = tl.load(results.labels + row_id)
        previous_streak = tl.load(results.streaks + row_id)
        c, p = tl.arange(0, block_c), tl.arange(0, block_p)
        is_class, is_unit = c < classes, p < policy_size
        z = tl.load(weights.classifier_bias + c, mask=is_class, other=0.0)
        inner = tl.zeros([block_p], tl.float32)
        for start in range(0, hidden_size, block_h):
            h = start + tl.arange(0, block_h)
            inside = h < hidden_size
            state = tl.load(pooled + row * hidden_size + h, mask=inside, other=0.0)
            state = _tanh(state.to(tl.float32))[None, :]
            place = weights.classifier_weight + c[:, None] * hidden_size + h[None, :]
            weight = tl.load(place, mask=is_class[:, None] & inside[None, :], other=0.0)
            z += tl.sum(weight * state, axis=1)
            if uses_policy and reads_state:
                place = weights.dense_weight + p[:, None] * features + h[None, :]
                weight = tl.load(place, mask=is_unit[:, None] & inside[None, :], other=0.0)
                inner += tl.sum(weight * state, axis=1)
        label, top, margin, certainty, logit_margin = _predict(z, c, log_classes, classes, block_c)
        agrees = previous_label == label
        streak = tl.where(agrees, previous_streak + 1, 0)

        score = tl.full([], 1.0, tl.float32)
        if uses_policy:
            if reads_prediction:
                place = weights.dense_weight + p * features + read
                inner += tl.load(place, mask=is_unit, other=0.0) * top
                inner += tl.load(place + 1, mask=is_unit, other=0.0) * margin
                inner += tl.load(place + 2, mask=is_unit, other=0.0) * certainty
                inner += tl.load(place + 3, mask=is_unit, other=0.0) * logit_margin
                inner += tl.load(place + 4, mask=is_unit, other=0.0) * agrees.to(tl.float32)
            inner += tl.load(weights.dense_bias + p, mask=is_unit, other=0.0)
            inner = 0.5 * inner * (1.0 + tl.erf(inner * 0.70710678118654752))
            inner *= tl.load(weights.score_weight + p, mask=is_unit, other=0.0)
            logit = tl.sum(tl.where(is_unit, inner, 0.0), axis=0) + tl.load(weights.score_bias)
            score = 1.0 / (1.0 + tl.exp(-logit))
        elif criterion == 1:
            score = top
        elif criterion == 2:
            score = certainty
        elif criterion == 3:
            # Rounded correctly: a score equal to the threshold must not come out above it.
            score = tl.div_rn(streak.to(tl.float32), most_streak.to(tl.float32))
        elif criterion == 4:
            highest = tl.sum(tl.where(c == label, z, 0.0), axis=0)
            above = -tl.log(top)  # not a number where `highest` is not finite, and the sum is it
            score = 1.0 / (1.0 + tl.exp(-tl.where(above > 0.0, highest + above, highest)))

        # A NaN score never exceeds the threshold: the row goes on, and leaves at the last layer.
        leaves = (score > threshold) | last
        # Every warp has read the label and the streak before one of them overwrites it.
        tl.debug_barrier()
        tl.store(results.labels + row_id, label)
        tl.store(results.streaks + row_id, streak)
        if leaves:
            tl.store(results.logits + row_id * classes + c, z, mask=is_class)
            tl.store(results.exit_layers + row_id, layer.to(tl.int64))
            tl.store(results.exit_scores + row_id, score)
        stays = tl.where(leaves, 0, 1)
    tl.store(plan.keep + row, stays)
    rows = tl.num_programs(0)
    if ends_last(finished, rows):
        _plan_survivors(plan, cu_seqlens, row_ids, rows, block_rows)
        tl.store(finished, 0)


@triton.jit
def _copy_rows(
    hidden: tl.tensor,
    cu_seqlens: tl.tensor,
    offsets: tl.tensor,
    out: tl.tensor,
    hidden_size: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Grid (B, splits): the programs of a row share its tokens, which lie side by side."""
    row, split = tl.program_id(0), tl.program_id(1)
    offset = tl.load(offsets + row)
    if offset >= 0:
        begin = tl.load(cu_seqlens + row)
        size = (tl.load(cu_seqlens + row + 1) - begin) * hidden_size
        source = hidden + begin.to(tl.int64) * hidden_size
        target = out + offset.to(tl.int64) * hidden_size
        for first in range(split * block, size, tl.num_programs(1) * block):
            i = first + tl.arange(0, block)
            tl.store(target + i, tl.load(source + i, mask=i < size), mask=i < size)


def exit_step_ahead(
    hidden: Tensor,
    cu_seqlens: Tensor,
    row_ids: Tensor,
    pooled: Tensor,
    classifier_weight: Tensor,
    classifier_bias: Tensor,
    dense_weight: Tensor | None,
    dense_bias: Tensor | None,
    score_weight: Tensor | None,
    score_bias: Tensor | None,
    policy_input: int,
    criterion: int,
    threshold: float,
    layer: int,
    max_streak: int,
    last: bool,
    logits: Tensor,
    exit_layers: Tensor,
    exit_scores: Tensor,
    labels: Tensor,
    streaks: Tensor,
    counters: Tensor,
    totals: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.exit_step` with results sized for all B rows, so that nobody waits for B'.

    Args:
        hidden: ``[T, H]`` float32, bfloat16 or float16.
        cu_seqlens: ``[B+1]`` int32.
        row_ids: ``[B]`` int64, places in the results; -1 where there is no row.
        pooled: ``[B, H]`` in the dtype of `hidden`, the pooler's product before tanh.
        classifier_weight: ``[C, H]``, as the other weights float32: see `packed.HeadWeights`.
        policy_input: 0 none, 1 state, 2 prediction, 3 both.
        criterion: 0 policy, 1 confidence, 2 entropy, 3 patience, 4 energy.
        logits: ``[N, C]`` float32, as the next four written: see `packed.ExitState`.
        counters: ``[1]`` int32 or more, zeros before and after.
        totals: ``[2]`` int32, becomes (B', T').

    Returns:
        ``[T, H]``, of which T' are written; ``[B+1]``, the offsets of the B' rows that stay and
        then T'; ``[B]``, their ids and then -1.
    """
    rows, (tokens, size), classes = len(row_ids), hidden.shape, len(classifier_bias)
    out = torch.empty_like(hidden)
    if rows == 0:
        totals.zero_()
        return out, cu_seqlens.clone(), row_ids.clone()
    weights = HeadWeights(
        classifier_weight, classifier_bias, dense_weight, dense_bias, score_weight, score_bias
    )
    plan = SurvivorPlan(
        cu_seqlens.new_empty(rows),
        cu_seqlens.new_empty(rows),
        torch.empty_like(cu_seqlens),
        torch.empty_like(row_ids),
        totals,
    )
    policy_size = 1 if dense_bias is None else len(dense_bias)
    # Two at least: a reduction of a single element is not every version's strength.
    block_c = max(2, triton.next_power_of_2(classes))
    block_p = max(2, triton.next_power_of_2(policy_size))
    most = max(1, HEAD_TILE // max(block_c, block_p))
    with torch.cuda.device_of(hidden):
        _exit_rows[(rows,)](
            pooled,
            cu_seqlens,
            row_ids,
            weights,
            threshold,
            layer,
            max(max_streak, 1),
            math.log(classes),
            ExitState(logits, exit_layers, exit_scores, labels, streaks),
            plan,
            counters,
            hidden_size=size,
            classes=classes,
            policy_size=policy_size,
            block_h=min(most, max(16, triton.next_power_of_2(size))),
            block_c=block_c,
            block_p=block_p,
            block_rows=PLAN_ROWS,
            reads_state=policy_input in (1, 3),
            reads_prediction=policy_input in (2, 3),
            criterion=criterion,
            last=last,
            num_warps=8,
            **FUSED,
        )
        if not last and hidden.numel() > 0:
            # One tile a program on a row of mean length; how many rows stay is not known here.
            splits = min(max(tokens * size // (rows * TILE), 1), 64)
            _copy_rows[(rows, splits)](
                hidden, cu_seqlens, plan.offsets, out, hidden_size=size, block=TILE, **FUSED
            )
    return out, plan.cu_seqlens, plan.row_ids
