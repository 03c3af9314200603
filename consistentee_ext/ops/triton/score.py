"""The exit criteria: what a row's score is, from its logits and what its policy says.

csrc/kernels/score.h has the same formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def argmax(
    values: tl.tensor, present: tl.tensor, index: tl.tensor, size: tl.constexpr
) -> tl.tensor:
    """The first of the largest; a NaN is larger than any number, as in torch.argmax."""
    nan = present & (values != values)
    first_nan = tl.min(tl.where(nan, index, size), axis=0)
    most = tl.max(tl.where(present & (values == values), values, float("-inf")), axis=0)
    first = tl.min(tl.where(present & (values == most), index, size), axis=0)
    return tl.where(first_nan < size, first_nan, first)


@triton.jit
def predict(
    z: tl.tensor,
    c: tl.tensor,
    log_classes: tl.tensor,
    classes: tl.constexpr,
    block: tl.constexpr,
) -> tl.tensor:
    """Label, top, margin, certainty and logit margin of logits: see `prediction_statistics`."""
    present = c < classes
    label = argmax(z, present, c, block)
    highest = tl.sum(tl.where(c == label, z, 0.0), axis=0)
    if classes == 1:
        top = 1.0 + (highest - highest)  # NaN where the logit is not finite
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
def predict_set(z: tl.tensor, c: tl.tensor, log_two: tl.tensor, classes: tl.constexpr) -> tl.tensor:
    """The same of independent labels, without label: of the least sure one as two classes, with the
    logits ``min |z|`` and 0.
    """
    present = c < classes
    missing = tl.sum((present & (z != z)).to(tl.int32), axis=0)  # tl.min would lose a NaN
    least = tl.min(tl.where(present & (z == z), tl.abs(z), float("inf")), axis=0)
    least = tl.where(missing > 0, float("nan"), least)
    same = least - least  # NaN where it is not finite
    power, other = tl.exp(same), tl.exp(-least)
    total = power + other
    entropy = tl.log(total) - (power * same - other * least) / total
    top = 1.0 / total
    return top, top - other / total, 1.0 - entropy / log_two, least


@triton.jit
def score_of(
    criterion: tl.constexpr,
    highest: tl.tensor,
    top: tl.tensor,
    margin: tl.tensor,
    certainty: tl.tensor,
    logit_margin: tl.tensor,
    streak: tl.tensor,
    max_streak: tl.tensor,
    policy_probability: tl.tensor,
) -> tl.tensor:
    """The score by the number of the criterion, see `consistentee_ext.criteria`.

    `highest` is the largest logit; the next four are what `predict` returns, whether a criterion
    here reads them or not.
    """
    score = policy_probability
    if criterion == 1:
        score = top
    elif criterion == 2:
        score = certainty
    elif criterion == 3:
        # Rounded correctly: a score equal to the threshold must not come out above it.
        score = tl.div_rn(streak.to(tl.float32), max_streak.to(tl.float32))
    elif criterion == 4:
        above = -tl.log(top)  # NaN where `highest` is not finite: then the sum is `highest`
        score = 1.0 / (1.0 + tl.exp(-tl.where(above > 0.0, highest + above, highest)))
    return score
