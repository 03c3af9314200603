"""Names that a user writes, apart from what they stand for: a command line that lists them imports
no torch.
"""

from __future__ import annotations

from typing import Literal, get_args

# What a policy may read, numbered from 1 on as `PolicyInput` in csrc/kernels/exit_head.h; 0 is no
# policy.
PolicyInput = Literal["state", "prediction", "both"]
POLICY_INPUTS: tuple[PolicyInput, ...] = get_args(PolicyInput)

# What a head reads of a layer: a row's first token, or the mean of its tokens.
Pooling = Literal["cls", "mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

# What a task is measured by. f1 is of class 1, the second in the order of the labels.
Metric = Literal["accuracy", "f1", "matthews", "spearman"]
METRICS: tuple[Metric, ...] = get_args(Metric)
