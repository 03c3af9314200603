"""Names of a run's choices, apart from what they stand for, as in `consistentee_ext.names`."""

from __future__ import annotations

from typing import Literal, get_args

EstimatorName = Literal["exact", "reinforce"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)

Reward = Literal["hardness", "plain", "oracle"]
REWARDS: tuple[Reward, ...] = get_args(Reward)
