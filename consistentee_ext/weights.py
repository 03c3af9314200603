"""Weights as the operations read them.

Letters: I and O the sizes of a product, H hidden size, C classes, P policy size, F its features.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# What an exit head applies to the pooler's product; numbered as `StateActivation` in
# csrc/kernels/exit_head.h.
STATE_ACTIVATIONS = ("tanh", "relu")


class LinearWeights(NamedTuple):
    """``f(x W^T + b)``.

    Attributes:
        weight: W, ``[O, I]``, in the dtype of the hidden states.
        bias: b, ``[O]``.
        activation: f by its name in transformers' configurations; None is the identity.
        prepacked: whether `weight` is laid out for oneDNN, see `consistentee_ext.ops.onednn`.
    """

    weight: Tensor
    bias: Tensor
    activation: str | None = None
    prepacked: bool = False


class NormWeights(NamedTuple):
    """Layer norm: ``weight [H]``, ``bias [H]`` in the dtype of the hidden states, and ``eps``."""

    weight: Tensor
    bias: Tensor
    eps: float


class HeadWeights(NamedTuple):
    """What the exit step reads of a head, in float32 whatever the dtype of the hidden states.

    Attributes:
        classifier_weight: ``[C, H]``.
        classifier_bias: ``[C]``.
        dense_weight: ``[P, F]``, of the policy; F is H, 5 or H + 5 by `policy_input`. Without
            policy this and the next three are None.
        dense_bias: ``[P]``.
        score_weight: ``[P]``.
        score_bias: ``[1]``.
        policy_input: one of `consistentee_ext.criteria.POLICY_INPUTS`, None without policy.
        state_activation: one of `STATE_ACTIVATIONS`.
        multi_label: whether labels are independent, see `consistentee_ext.ops.prediction`.
    """

    classifier_weight: Tensor
    classifier_bias: Tensor
    dense_weight: Tensor | None = None
    dense_bias: Tensor | None = None
    score_weight: Tensor | None = None
    score_bias: Tensor | None = None
    policy_input: str | None = None
    state_activation: str = "tanh"
    multi_label: bool = False
