"""Logits as the scores that a reply shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from consistentee_ext.configuration import answer_type
from consistentee_ext.names import MULTI_LABEL, REGRESSION
from consistentee_ext.serving.errors import ApiError


def scores(logits: Tensor, config: Any, raw: bool) -> list[list[float]]:
    """``[N, C]``: by ``config.problem_type`` the softmax of classes, the sigmoid of independent
    labels and of a single score, the number of a regression.

    Raises:
        ApiError: a score is NaN or infinite, which JSON has no word for.
    """
    if not raw:
        logits = _activated(logits, config)
    if bool(torch.isnan(logits).any()):
        raise ApiError("Backend", "score is NaN")
    if bool(torch.isinf(logits).any()):
        raise ApiError("Backend", "score is infinite")
    found: list[list[float]] = logits.tolist()
    return found


def _activated(logits: Tensor, config: Any) -> Tensor:
    if config.problem_type == REGRESSION:
        return logits
    kind = answer_type(config)
    return logits.sigmoid() if kind in (MULTI_LABEL, REGRESSION) else logits.softmax(dim=-1)
