"""Names that a user writes, apart from what they stand for: a command line that lists them imports
no torch.
"""

from __future__ import annotations

from typing import Literal, get_args

# What a policy may read, numbered from 1 on as `PolicyInput` in csrc/kernels/exit_head.h; 0 is no
# policy.
PolicyInput = Literal["state", "prediction", "both"]
POLICY_INPUTS: tuple[PolicyInput, ...] = get_args(PolicyInput)

# What a head reads of a layer: a row's first token, its last one, the mean of its tokens, or the
# means of its two texts, which it compares.
Pooling = Literal["cls", "last", "mean", "pair"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

# What an exit head applies to its pooler's product, by transformers' names.
HEAD_ACTIVATIONS = ("tanh", "relu", "gelu", "none")

# How the LM head reads a decoder's exit, and the policies that read its state.
Readout = Literal["translator", "trunk"]
READOUTS: tuple[Readout, ...] = get_args(Readout)
DecoderPolicy = Literal["mlp", "linear"]
DECODER_POLICIES: tuple[DecoderPolicy, ...] = get_args(DecoderPolicy)

# The values of transformers' ``problem_type``.
REGRESSION = "regression"
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"

# What a task is measured by. f1 is of class 1, the second in the order of the labels; f1_micro and
# f1_macro are over all labels; the accuracy of sets counts those that are right as a whole.
Metric = Literal["accuracy", "f1", "f1_micro", "f1_macro", "matthews", "spearman"]
METRICS: tuple[Metric, ...] = get_args(Metric)
METRICS_OF: dict[str, tuple[Metric, ...]] = {
    SINGLE_LABEL: ("accuracy", "f1", "matthews"),
    MULTI_LABEL: ("accuracy", "f1_micro", "f1_macro"),
    REGRESSION: ("spearman",),
}

TOLERANCE = 0.05  # by how much a number may differ and be the same answer
