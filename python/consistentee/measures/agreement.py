"""Whether a layer gives the full model's answer."""

from __future__ import annotations

from torch import Tensor

from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.names import REGRESSION, TOLERANCE
from consistentee_ext.ops.prediction import answers


def agreement(
    exit_logits: Tensor, reference: Tensor, config: ConsistentEEConfig, tolerance: float = TOLERANCE
) -> Tensor:
    """Where the answers of exits are those of a reference: ``[N, L]`` bool.

    A class agrees if it is the same, a set of labels if it is the same set. A number agrees if it
    differs by at most `tolerance`: a regression's as it is, a score as its sigmoid.

    Args:
        exit_logits: ``[N, L, C]``.
        reference: ``[N, C]``, mostly the last layer's logits.
        config: the model's.
        tolerance: of numbers.
    """
    if config.regression:
        as_it_is = config.problem_type == REGRESSION
        numbers, expected = (
            x[..., 0] if as_it_is else x[..., 0].sigmoid() for x in (exit_logits, reference)
        )
        return (numbers - expected[:, None]).abs() <= tolerance
    same = (
        answers(exit_logits, config.multi_label) == answers(reference, config.multi_label)[:, None]
    )
    return same.all(dim=-1) if config.multi_label else same
