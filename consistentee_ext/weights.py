"""Weights as the operations read them.

Letters: I and O the sizes of a product, H hidden size, C classes, P policy size, F its features.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# What the exit step applies to the pooler's product; numbered as `StateActivation` in
# csrc/kernels/exit_head.h. Another activation belongs to the product.
STATE_ACTIVATIONS = ("tanh", "relu", "none")

WEIGHT_FORMATS = ("int8",)  # of the products of blocks, beside the dtype of the hidden states


class LinearWeights(NamedTuple):
    """``f(x W^T + b)``.

    Attributes:
        weight: W, ``[O, I]``, in the dtype of the hidden states; with `scale`, integers, int8.
        bias: b, ``[O]``; None is zero. Likewise, with `scale` in float32.
        activation: f by its name in transformers' configurations; None is the identity.
        prepacked: whether `weight` is laid out for oneDNN, see `consistentee_ext.ops.onednn`.
        scale: ``[O]`` float32, of weights of 8 bits: W is the integers times it. See
            `consistentee_ext.ops.onednn_int8`.
        levels: with `scale`, an activation is rounded to an integer from 0 to ``2 levels + 1``.
        few_rows: whether T is small, as in decoding: `weight` then stays as it is, and a product
            takes the time of reading it.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str | None = None
    prepacked: bool = False
    scale: Tensor | None = None
    levels: int = 0
    few_rows: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """O and I."""
        first, second = self.weight.shape
        return (second, first) if self.prepacked and self.scale is not None else (first, second)


class NormWeights(NamedTuple):
    """Layer norm: ``weight [H]``, ``bias [H]`` in the dtype of the hidden states, and ``eps``.

    Without bias it is a root-mean-square norm, ``x / sqrt(mean(x^2) + eps) * weight``. (A layer
    norm that has no bias is one of zeros.)
    """

    weight: Tensor
    bias: Tensor | None
    eps: float


class Rotation(NamedTuple):
    """Rotary positions (arXiv 2104.09864): the angles of position p, as ``cos`` and ``sin``
    ``[P, r/2]`` float32.

    Of a head's first r numbers, ``x = (x1, x2)`` becomes ``(x1 cos - x2 sin, x2 cos + x1 sin)``.
    """

    cos: Tensor
    sin: Tensor


BUCKETS = 16  # their number is a multiple of it: whole vectors


class RelativeTerms(NamedTuple):
    """DeBERTa's terms of content and distance (arXiv 2006.03654).

    The score of a query at q and a key at k gets ``Q . keys[i] + K . queries[i]`` added, both times
    the scale, where ``i = buckets[q - k + P - 1]``.

    Attributes:
        keys: ``[heads, R, d]`` float32, R a multiple of `BUCKETS`; None without this term.
        queries: ``[heads, d, R]`` float32, likewise.
        buckets: ``[2P - 1]`` int32, of each distance; it never falls.
    """

    keys: Tensor | None
    queries: Tensor | None
    buckets: Tensor


class AttentionForm(NamedTuple):
    """How an attention differs from BERT's, all of whose fields are at their defaults.

    Letters: q and k the places of a query and of a key in their row, P the longest row.

    Attributes:
        num_kv_heads: heads of keys and values, each of which serves as many heads of queries as
            the others; None for as many as there are.
        scale: of the scores; None is ``1 / sqrt(d)``.
        low: keys with ``q - k < low`` are not attended to; None sets no bound. 0 is causal.
        high: nor those with ``q - k > high``.
        rotation: of queries and keys.
        bias: ``[heads, 2P - 1]`` float32, added to the scores at ``q - k + P - 1``.
        relative: more terms of the scores.
        query_norm: of each head of the queries, before the rotation.
        key_norm: likewise of the keys.
        last_queries: where a row has fewer queries than keys, they are its last ones, not its
            first.
        cap: c of ``c * tanh(score / c)``, which stands for the score; None for the score itself.
            In PyTorch alone, whatever the backend, and with neither `bias` nor `relative`.
    """

    num_kv_heads: int | None = None
    scale: float | None = None
    low: int | None = None
    high: int | None = None
    rotation: Rotation | None = None
    bias: Tensor | None = None
    relative: RelativeTerms | None = None
    query_norm: NormWeights | None = None
    key_norm: NormWeights | None = None
    last_queries: bool = False
    cap: float | None = None


PLAIN = AttentionForm()  # BERT's


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
