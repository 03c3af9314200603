"""Names of a run's choices, apart from what they stand for, as in `consistentee_ext.names`."""

from __future__ import annotations

from typing import Literal, get_args

Target = Literal["teacher", "gold"]
TARGETS: tuple[Target, ...] = get_args(Target)

PolicyLoss = Literal["error", "cross-entropy"]
POLICY_LOSSES: tuple[PolicyLoss, ...] = get_args(PolicyLoss)
