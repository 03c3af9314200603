"""The exit step: one program decides one row; the last to finish computes the survivors' offsets; a
second kernel copies their tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from consistentee_ext.ops.schema import ACTIVATION_CODES, CRITERION_CODES
from consistentee_ext.ops.triton.common import FUSED, ends_last
from consistentee_ext.ops.triton.compact import (
    PLAN_ROWS,
    SurvivorPlan,
    copy_survivors,
    plan_survivors,
)
from consistentee_ext.ops.triton.score import predict, predict_set, score_of
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

HEAD_TILE = 8192  # elements of a head's weights, that a program takes at a time


class _Head(NamedTuple):
    """The tensors of `HeadWeights`."""

    classifier_weight: Tensor
    classifier_bias: Tensor
    dense_weight: Tensor | None
    dense_bias: Tensor | None
    score_weight: Tensor | None
    score_bias: Tensor | None


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """The hyperbolic tangent to 3e-7: a polynomial near zero, where ``1 - 2 / (exp(2|x|) + 1)``
    would cancel.
    """
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


@triton.jit(do_not_specialize=["layer", "max_streak"])
def _exit_rows(
    pooled: tl.tensor,
    cu_seqlens: tl.tensor,
    row_ids: tl.tensor,
    weights: tl.tuple,
    thresholds: tl.tensor,
    layer: tl.tensor,
    max_streak: tl.tensor,
    log_classes: tl.tensor,
    results: tl.tuple,
    plan: tl.tuple,
    tickets: tl.tensor,
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
    threshold_stride: tl.constexpr,
    activation: tl.constexpr,
    last: tl.constexpr,
    multi_label: tl.constexpr,
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
            state = state.to(tl.float32)
            if activation == 0:
                state = _tanh(state)
            elif activation == 1:
                state = tl.where(state < 0.0, 0.0, state)
            state = state[None, :]
            place = weights.classifier_weight + c[:, None] * hidden_size + h[None, :]
            weight = tl.load(place, mask=is_class[:, None] & inside[None, :], other=0.0)
            z += tl.sum(weight * state, axis=1)
            if uses_policy and reads_state:
                place = weights.dense_weight + p[:, None] * features + h[None, :]
                weight = tl.load(place, mask=is_unit[:, None] & inside[None, :], other=0.0)
                inner += tl.sum(weight * state, axis=1)
        if multi_label:
            top, margin, certainty, logit_margin = predict_set(z, c, log_classes, classes)
            label = tl.full([], 0, tl.int32)
            before = tl.load(results.logits + row_id * classes + c, mask=is_class, other=0.0)
            differs = is_class & ((before > 0.0) != (z > 0.0))
            agrees = (previous_label == label) & (tl.sum(differs.to(tl.int32), axis=0) == 0)
        else:
            label, top, margin, certainty, logit_margin = predict(
                z, c, log_classes, classes, block_c
            )
            agrees = previous_label == label
        streak = tl.where(agrees, previous_streak + 1, 0)

        probability = tl.full([], 1.0, tl.float32)
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
            probability = 1.0 / (1.0 + tl.exp(-logit))
        highest = tl.sum(tl.where(c == label, z, 0.0), axis=0)
        statistics = (top, margin, certainty, logit_margin)
        score = score_of(criterion, highest, *statistics, streak, max_streak, probability)
        threshold = tl.load(thresholds + row_id * threshold_stride)

        # A NaN score never exceeds the threshold: the row stays, and leaves at the last layer.
        leaves = (score > threshold) | last
        # Every warp has read what an earlier exit layer wrote before one of them overwrites it.
        tl.debug_barrier()
        tl.store(results.labels + row_id, label)
        tl.store(results.streaks + row_id, streak)
        if leaves | multi_label:
            tl.store(results.logits + row_id * classes + c, z, mask=is_class)
        if leaves:
            tl.store(results.exit_layers + row_id, layer.to(tl.int64))
            tl.store(results.exit_scores + row_id, score)
        stays = tl.where(leaves, 0, 1)
    tl.store(plan.keep + row, stays)
    rows = tl.num_programs(0)
    if ends_last(tickets, rows):
        plan_survivors(plan, cu_seqlens, row_ids, rows, block_rows)
        tl.store(tickets, 0)


def exit_step_async(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitResults,
    tickets: Tensor,
    totals: Tensor,
    out: PackedBatch,
) -> None:
    """`consistentee_ext.ops.reference.exit_step_async` in two launches, no wait."""
    rows, size, classes = len(batch.row_ids), pooled.shape[1], len(weights.classifier_bias)
    if rows == 0:
        totals.zero_()
        out.cu_seqlens.zero_()
        return
    plan = SurvivorPlan.to(out, totals)
    policy_size = 1 if weights.dense_bias is None else len(weights.dense_bias)
    # Two at least: a reduction of a single element is not every version's strength.
    block_c = max(2, triton.next_power_of_2(classes))
    block_p = max(2, triton.next_power_of_2(policy_size))
    most = max(1, HEAD_TILE // max(block_c, block_p))
    with torch.cuda.device_of(batch.hidden):
        _exit_rows[(rows,)](
            pooled,
            batch.cu_seqlens,
            batch.row_ids,
            _Head(*weights[:6]),
            decision.thresholds,
            decision.layer,
            max(decision.max_streak, 1),
            math.log(2 if weights.multi_label else classes),
            results,
            plan,
            tickets,
            hidden_size=size,
            classes=classes,
            policy_size=policy_size,
            block_h=min(most, max(16, triton.next_power_of_2(size))),
            block_c=block_c,
            block_p=block_p,
            block_rows=PLAN_ROWS,
            reads_state=weights.policy_input in ("state", "both"),
            reads_prediction=weights.policy_input in ("prediction", "both"),
            criterion=CRITERION_CODES[decision.criterion],
            threshold_stride=decision.thresholds.stride(0),
            activation=ACTIVATION_CODES[weights.state_activation],
            last=decision.last,
            multi_label=weights.multi_label,
            num_warps=8,
            **FUSED,
        )
        if not decision.last:
            copy_survivors(batch, plan, out.hidden)
