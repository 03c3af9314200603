"""Finds the exit threshold for a goal: an accuracy, an agreement, a loss, a ratio or a latency.

All need rows that the model was not trained on. Letters: N rows, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom
from torch import Tensor

from consistentee.measures.exit_scores import at_exit, leave_at

# Fixed before any row is seen, as the guarantee requires; evenly spaced in logits, because most
# scores are near 0 or 1.
GRID = tuple((1.0 / (1.0 + np.exp(-np.arange(8.0, -8.01, -0.25)))).tolist())
# Stakes of the bets in `drop_p_value`, as shares of the highest stake that cannot lose everything.
STAKES = np.geomspace(0.05, 0.98, 8)


def threshold_for_accuracy(
    scores: Tensor, correct: Tensor, max_drop: float, confidence: float
) -> float:
    """The lowest threshold that is proved to lose at most `max_drop` accuracy against full depth.

    Learn then test (arXiv 2110.01052): with probability `confidence` over the draw of the rows, the
    accuracy lost on the distribution they come from is at most `max_drop`. Thresholds of `GRID` are
    tested from the slowest to the first that fails, each at the whole error rate; testing in a
    fixed sequence corrects for multiple tests. Full depth, 1.0, loses nothing.

    Args:
        scores: ``[N, L-1]`` of the exit criterion.
        correct: ``[N, L]``, 1 where a layer's answer is right.
        max_drop: D, in (0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: a number outside its range, or too few rows for any threshold to pass.
    """
    _check_share("max_drop", max_drop)
    _check_share("confidence", confidence)
    needed = rows_needed(max_drop, confidence)
    if len(scores) < needed:
        raise ValueError(
            f"data: expected at least {needed} rows to prove a drop of at most {max_drop} with "
            f"confidence {confidence}, got {len(scores)}"
        )
    answers = correct.long()
    full = answers[:, -1]

    def p_value(exits: Tensor) -> float:
        change = full - at_exit(answers, exits)
        lost, won = int((change > 0).sum()), int((change < 0).sum())
        return drop_p_value(lost, won, len(full), max_drop)

    return _lowest_proved(scores, p_value, confidence)


def threshold_for_agreement(
    scores: Tensor, agrees: Tensor, max_disagreement: float, confidence: float
) -> float:
    """The lowest threshold that is proved to change at most a share of full depth's answers.

    As `threshold_for_accuracy`, without labels: of the distribution that the rows come from, at
    most `max_disagreement` get another answer than at full depth. The p-value of a threshold that
    changes k answers of N is the exact ``P(Binomial(N, D) <= k)``.

    Args:
        scores: ``[N, L-1]`` of the exit criterion.
        agrees: ``[N, L]``, 1 where a layer's answer is that of the last one.
        max_disagreement: D, in (0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: a number outside its range, or too few rows for any threshold to pass.
    """
    _check_share("max_disagreement", max_disagreement)
    _check_share("confidence", confidence)
    needed = rows_to_agree(max_disagreement, confidence)
    if len(scores) < needed:
        raise ValueError(
            f"data: expected at least {needed} rows to prove a disagreement of at most "
            f"{max_disagreement} with confidence {confidence}, got {len(scores)}"
        )

    def p_value(exits: Tensor) -> float:
        changed = int((~at_exit(agrees.bool(), exits)).sum())
        return float(binom.cdf(changed, len(scores), max_disagreement))

    return _lowest_proved(scores, p_value, confidence)


def threshold_for_mean_loss(
    losses: Callable[[float], NDArray[np.float64]], max_loss: float, confidence: float
) -> float:
    """The lowest threshold that is proved to lose at most so much on average.

    As `threshold_for_accuracy`, for a loss in [0, 1] of each text, whose mean over the distribution
    that the texts come from is at most `max_loss`.

    Args:
        losses: of N texts at a threshold, ``[N]``, always of the same texts. It is called at every
            fourth threshold of `GRID`, from the slowest to the first that fails.
        max_loss: D, in (0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: a number outside its range, or too few texts for any threshold to pass.
    """
    _check_share("max_loss", max_loss)
    _check_share("confidence", confidence)
    proved, needed = 1.0, rows_needed(max_loss, confidence)
    for threshold in GRID[::4]:
        found = losses(threshold)
        if len(found) < needed:
            raise ValueError(
                f"data: expected at least {needed} texts to prove a loss of at most {max_loss} "
                f"with confidence {confidence}, got {len(found)}"
            )
        if mean_p_value(found, max_loss) > 1.0 - confidence:
            break
        proved = threshold
    return proved


def _lowest_proved(scores: Tensor, p_value: Callable[[Tensor], float], confidence: float) -> float:
    """The last threshold of `GRID` before the first whose exits, ``[N]``, fail the test."""
    proved = 1.0
    for threshold in GRID:
        if p_value(leave_at(scores, threshold)) > 1.0 - confidence:
            break
        proved = threshold
    return proved


def rows_to_agree(max_disagreement: float, confidence: float) -> int:
    """The number of rows that prove a disagreement of at most D if none disagrees.

    The least N with ``(1 - D)^N <= 1 - confidence``.
    """
    return math.ceil(math.log1p(-confidence) / math.log1p(-max_disagreement))


def drop_p_value(lost: int, won: int, rows: int, max_drop: float) -> float:
    """A p-value, valid for any number of rows, of "exits lose `max_drop` accuracy or more".

    A row's loss x is 1 if exits turn a right answer into a wrong one, -1 if they turn a wrong
    answer into a right one, else 0. If its mean is D or more, ``prod_i(1 + s * (D - x_i))`` has
    mean 1 at most for each stake s in 0..1 / (1 - D), and so has the average over stakes; p is one
    over it, by Markov's inequality (betting, arXiv 2010.09686). Unlike Hoeffding's bound it is
    tight when x is nearly always 0.

    Args:
        lost: rows with x = 1.
        won: rows with x = -1.
        rows: N.
        max_drop: D.
    """
    stakes = STAKES / (1.0 - max_drop)
    wealth = (
        lost * np.log1p(stakes * (max_drop - 1.0))
        + won * np.log1p(stakes * (max_drop + 1.0))
        + (rows - lost - won) * np.log1p(stakes * max_drop)
    )
    return _average_bet(wealth)


def mean_p_value(losses: NDArray[np.float64], max_mean: float) -> float:
    """A p-value, valid for any number of texts, of "the mean loss is `max_mean` or more".

    By the bets of `drop_p_value`, on losses that are any numbers in [0, 1].

    Args:
        losses: ``[N]``.
        max_mean: D.
    """
    stakes = STAKES / (1.0 - max_mean)
    return _average_bet(np.log1p(stakes * (max_mean - losses[:, None])).sum(axis=0))


def _average_bet(log_wealth: NDArray[np.float64]) -> float:
    """One over the mean wealth of all stakes, 1 at most."""
    return float(np.exp(min(0.0, np.log(len(log_wealth)) - logsumexp(log_wealth))))


def rows_needed(max_drop: float, confidence: float) -> int:
    """The number of rows that prove a drop of at most `max_drop` if exits change no answer."""
    rows = 1
    while drop_p_value(0, 0, rows, max_drop) > 1.0 - confidence:
        rows *= 2
    low = rows // 2
    while rows - low > 1:
        middle = (low + rows) // 2
        if drop_p_value(0, 0, middle, max_drop) > 1.0 - confidence:
            low = middle
        else:
            rows = middle
    return rows


def threshold_for_ratio(scores: Tensor, ratio: float) -> float:
    """The highest threshold at which these rows have a layer ratio of at least `ratio`.

    The layer ratio is ``L / mean exit layer``.

    Args:
        scores: ``[N, L-1]`` of the exit criterion.
        ratio: in 1..L.

    Raises:
        ValueError: no threshold reaches the ratio.
    """
    num_layers = scores.shape[1] + 1
    if not 1.0 <= ratio <= num_layers:
        raise ValueError(f"layer_ratio: expected a number in 1..{num_layers}, got {ratio}")
    thresholds = all_thresholds(scores)

    def ratio_at(threshold: float) -> float:
        mean_exit_layer: float = leave_at(scores.double(), threshold).double().mean().item()
        return num_layers / mean_exit_layer

    def is_fast(threshold: float) -> bool:
        return ratio_at(threshold) >= ratio

    if not is_fast(thresholds[0]):
        raise ValueError(
            f"layer_ratio: expected at most {ratio_at(thresholds[0]):.2f}, the highest that any "
            f"threshold reaches on these rows, got {ratio}"
        )
    return thresholds[_last_true(is_fast, thresholds)]


def threshold_for_latency(
    scores: Tensor, milliseconds: float, measure: Callable[[float], float]
) -> float:
    """The highest threshold whose measured latency is at most `milliseconds`.

    Args:
        scores: ``[N, L-1]`` of the exit criterion; thresholds between the same scores are equal.
        milliseconds: above 0.
        measure: returns the latency at a threshold, in milliseconds.

    Raises:
        ValueError: even the fastest threshold is slower.
    """
    if not milliseconds > 0.0:
        raise ValueError(f"latency_ms: expected a number above 0, got {milliseconds}")
    thresholds = all_thresholds(scores)
    # A measurement takes seconds: only few thresholds, evenly spaced over the rows' scores.
    few: list[float] = sorted(
        {thresholds[i] for i in np.linspace(0, len(thresholds) - 1, 65).astype(int)}
    )
    fastest = measure(few[0])
    if fastest > milliseconds:
        raise ValueError(
            f"latency_ms: expected at least {fastest:.3g}, the latency of the fastest threshold "
            f"here, got {milliseconds}"
        )
    return few[_last_true(lambda threshold: measure(threshold) <= milliseconds, few)]


def all_thresholds(scores: Tensor) -> list[float]:
    """All thresholds that differ in effect: one between any two neighbouring scores, and 1.0.

    Ascending. Each is in the middle of the gap, so that the rounding of another engine changes no
    decision.
    """
    values = torch.unique(scores.double())
    lowest = values.new_zeros(1)
    edges = torch.cat((lowest, values))
    middles = (edges[1:] + edges[:-1]) / 2
    return [*(t for t in middles.tolist() if 0.0 < t < 1.0), 1.0]


def _last_true(holds: Callable[[float], bool], ascending: list[float]) -> int:
    """The largest index at which `holds` is true; it must be true at 0, and monotone."""
    low, high = 0, len(ascending)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(ascending[middle]):
            low = middle
        else:
            high = middle
    return low


def _check_share(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0.0 < value < 1.0):
        raise ValueError(f"{name}: expected a number above 0 and below 1, got {value}")
