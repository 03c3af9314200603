"""Whether a layer gives the full model's answer."""

from __future__ import annotations

from torch import Tensor

from consistentee.measures.hardness import correct_layers
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
    if not config.regression:
        return correct_layers(exit_logits, answers(reference, config.multi_label))
    if config.problem_type != REGRESSION:
        exit_logits, reference = exit_logits.sigmoid(), reference.sigmoid()
    return correct_layers(exit_logits, reference[:, 0], label_std=2 * tolerance)
