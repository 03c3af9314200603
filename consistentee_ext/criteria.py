"""Exit criteria: what a row's score is, by name. Everything that knows a criterion reads it here.

The order of `SCORES` numbers the criteria for the compiled ops (`Criterion` in
csrc/kernels/score.h) and the Triton kernels (`score_of` in ops/triton/score.py), which compute the
same formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor


class Prediction(NamedTuple):
    """What an exit layer knows of rows of any shape ``[...]``.

    Attributes:
        logits: z, ``[..., C]``.
        statistics: ``[..., 5]``, see `consistentee_ext.ops.prediction.prediction_statistics`.
        streak: ``[...]``, how many exit layers in a row agreed with the one before.
        max_streak: the most there can be: the exit layers, less one.
        exit_probability: gives ``[...]``, the policy's, 1 without policy; called by the criterion
            that reads it alone.
    """

    logits: Tensor
    statistics: Tensor
    streak: Tensor
    max_streak: int
    exit_probability: Callable[[], Tensor]


def _policy(prediction: Prediction) -> Tensor:
    """The policy's exit probability p (arXiv 2312.11882)."""
    return prediction.exit_probability()


def _confidence(prediction: Prediction) -> Tensor:
    """The top class's probability; of independent labels the smallest ``max(p, 1 - p)``."""
    return prediction.statistics[..., 0]


def _entropy(prediction: Prediction) -> Tensor:
    """``1 - entropy / log(C)`` (DeeBERT, arXiv 2004.12993, normalised); of independent labels
    1 less the largest binary entropy, in bits.
    """
    return prediction.statistics[..., 2]


def _patience(prediction: Prediction) -> Tensor:
    """``streak / max_streak`` (PABEE, arXiv 2006.04152)."""
    return prediction.streak.float() / max(prediction.max_streak, 1)


def _energy(prediction: Prediction) -> Tensor:
    """``sigmoid(logsumexp(z)) = Z / (1 + Z)``, ``Z = sum exp(z)``: the negative free energy
    (arXiv 2010.03759; E-LANG, arXiv 2203.00748), brought into (0, 1). Of classes alone.
    """
    return torch.sigmoid(torch.logsumexp(prediction.logits, dim=-1))


SCORES: dict[str, Callable[[Prediction], Tensor]] = {
    "policy": _policy,
    "confidence": _confidence,
    "entropy": _entropy,
    "patience": _patience,
    "energy": _energy,
}
CRITERIA = tuple(SCORES)
# Those that need no policy, for comparisons on the same weights.
PLAIN_CRITERIA = CRITERIA[1:]
# Those of independent labels. The sum that energy takes is over classes that exclude each other.
MULTI_LABEL_CRITERIA = tuple(name for name in CRITERIA if name != "energy")


def check_criterion(criterion: object, multi_label: bool = False) -> str:
    """The criterion; raises ValueError unless it is one of `CRITERIA`, or of
    `MULTI_LABEL_CRITERIA` where labels are independent.
    """
    known, where = CRITERIA, ""
    if multi_label:
        known, where = MULTI_LABEL_CRITERIA, " for independent labels"
    if criterion not in known:
        raise ValueError(f"criterion: expected one of {known}{where}, got {criterion!r}")
    return str(criterion)


def check_threshold(value: object) -> float:
    """The threshold as a float; raises unless it is a number in (0, 1]."""
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"threshold: expected a number in (0, 1], got {type(value).__name__}")
    number = float(value)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"threshold: expected a number in (0, 1], got {value}")
    return number
