"""The exit of one layer, ready to run, and how it is read from a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from consistentee_ext.exits.head import ExitHead, Policy, num_layers_of
from consistentee_ext.families import FAMILIES, is_native
from consistentee_ext.families.reader import ClassifierHead, Reader, expect
from consistentee_ext.names import MULTI_LABEL
from consistentee_ext.ops.norm import norm
from consistentee_ext.packed import PackedBatch
from consistentee_ext.segments import compare, pair_up, segment_offsets
from consistentee_ext.weights import (
    STATE_ACTIVATIONS,
    HeadWeights,
    LinearWeights,
    NormWeights,
)


class _Ops(Protocol):
    """What an exit needs of a backend."""

    def linear(self, x: Tensor, weights: LinearWeights) -> Tensor:
        """``[T, I]`` to ``[T, O]``."""


class Pool(Protocol):
    """`consistentee_ext.ops.reference.pool`, or a backend's."""

    def __call__(self, hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
        """``[T, H]`` to ``[B, H]``."""


@dataclass(frozen=True)
class Exit:
    """The exit of one layer: pooling, the pooler's product, and what the exit step reads.

    The alpha feature is the same for all rows, so its term of an adjustable policy is folded into
    the bias: ``dense_bias = base_bias + alpha_feature * alpha_weight``.

    Attributes:
        pooling: of a row; ``"pair"`` compares the means of its two texts.
        pooler: the product of what is pooled; None for none.
        weights: what the exit step reads.
        alpha_weight: of an adjustable policy.
        base_bias: likewise.
        norm: of what is pooled: the last norm of a model whose blocks norm first.
        norms_tokens: whether that comes before the pooling.
        state_norm: behind the pooler, whose activation is then its product's own.
        pools_states: whether the pooler comes before the pooling, with the same activation.
    """

    pooling: str
    pooler: LinearWeights | None
    weights: HeadWeights
    alpha_weight: Tensor | None = None
    base_bias: Tensor | None = None
    norm: NormWeights | None = None
    norms_tokens: bool = False
    state_norm: NormWeights | None = None
    pools_states: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is pooling and a product alone, as of BERT's kin."""
        extra = self.norm is not None or self.state_norm is not None or self.pools_states
        product = self.pooler is not None and self.pooler.activation is None
        return product and self.pooling in ("cls", "mean", "pair") and not extra

    @property
    def one_query(self) -> str | None:
        """Which token of a row alone is read, ``"cls"`` or ``"last"``; None where all are."""
        return self.pooling if self.pooling in ("cls", "last") else None

    def product(
        self, batch: PackedBatch, ops: _Ops, pool: Pool, first_lengths: Tensor | None = None
    ) -> Tensor:
        """What the exit step takes as ``pooled [B, H]``, of the rows of a batch.

        `first_lengths` says by number of row where the first text of each ends, for ``"pair"``.
        """
        hidden = batch.hidden
        if self.pooling == "pair":
            assert first_lengths is not None
            assert self.pooler is not None
            offsets = segment_offsets(batch.cu_seqlens, first_lengths[batch.row_ids])
            pair = pair_up(pool(hidden, offsets, "mean"), offsets).chunk(2, dim=-1)
            if self.norm is not None:
                pair = tuple(norm(text, *self.norm) for text in pair)
            return ops.linear(compare(*pair), self.pooler)
        if self.norm is not None and self.norms_tokens:
            hidden = norm(hidden, *self.norm)
        if self.pooler is not None and self.pools_states:
            hidden = ops.linear(hidden, self.pooler)
        pooled = pool(hidden, batch.cu_seqlens, self.pooling)
        if self.norm is not None and not self.norms_tokens:
            pooled = norm(pooled, *self.norm)
        if self.pooler is not None and not self.pools_states:
            pooled = ops.linear(pooled, self.pooler)
        return pooled if self.state_norm is None else norm(pooled, *self.state_norm)

    def at_alpha(self, feature: float) -> Exit:
        """This exit with an adjustable policy that reads this alpha feature."""
        if self.alpha_weight is None:
            return self
        assert self.base_bias is not None
        bias = torch.add(self.base_bias, self.alpha_weight, alpha=feature)
        return replace(self, weights=self.weights._replace(dense_bias=bias))


def model_exits(model: Any, backbone: Any, reader: Reader) -> dict[int, Exit]:
    """The exits of a model by layer (1-based); a Hugging Face classifier has one, at the last.

    `reader` says in which dtype and where; its pooling and config have no effect.
    """
    multi_label = model.config.problem_type == MULTI_LABEL
    if hasattr(model, "heads"):
        poolings = model.config.poolings
        return {
            layer: _of_head(head, pooling, multi_label, reader)
            for layer, (head, pooling) in enumerate(
                zip(model.heads, poolings, strict=True), start=1
            )
        }
    if not is_native(backbone.config):
        last = _of_logits(model.config.num_labels, multi_label, reader)
        return {backbone.config.num_hidden_layers: last}
    family = FAMILIES[backbone.config.model_type]
    last_norm = backbone.get_submodule(family.LAST_NORM) if family.LAST_NORM else None
    last = _of_classifier(family.read_head(model), last_norm, multi_label, reader)
    return {num_layers_of(backbone.config): last}


def _of_head(head: ExitHead, pooling: str, multi_label: bool, reader: Reader) -> Exit:
    """The pooler in the dtype of the reader; classifier and policy, which are small, in float32."""
    policy_weights, alpha_weight, base_bias = _policy_weights(head.policy, reader)
    of_product, activation = _split_activation(head.activation)
    return Exit(
        pooling,
        reader.linear(head.pooler, activation=of_product),
        _head_weights(head.classifier, activation, multi_label, reader, **policy_weights),
        alpha_weight,
        base_bias,
        norm=None if head.norm is None else reader.norm(head.norm),
    )


def _policy_weights(
    policy: Policy | None, reader: Reader
) -> tuple[dict[str, Any], Tensor | None, Tensor | None]:
    """Fields of `HeadWeights`; of an adjustable policy also the alpha weight and the base bias."""
    if policy is None:
        return {}, None, None
    exact, dense_weight = reader.exact, policy.dense.weight
    alpha_weight = base_bias = None
    if policy.adjustable:
        alpha_weight, base_bias = exact(dense_weight[:, -1]), exact(policy.dense.bias)
        dense_weight = dense_weight[:, :-1]
    weights = {
        "dense_weight": exact(dense_weight),
        "dense_bias": exact(policy.dense.bias),
        "score_weight": exact(policy.score.weight).view(-1),
        "score_bias": exact(policy.score.bias),
        "policy_input": policy.policy_input,
    }
    return weights, alpha_weight, base_bias


def _of_classifier(
    head: ClassifierHead, last_norm: nn.Module | None, multi_label: bool, reader: Reader
) -> Exit:
    """The exit of a Hugging Face classifier."""
    expect(head.classifier, nn.Linear, "the classifier")
    pooler, activation = None, "none"
    if head.pooler is not None:
        expect(head.pooler, nn.Linear, "the head's pooler")
        something_follows = head.state_norm is not None or head.pools_states
        of_product, activation = _split_activation(head.activation, something_follows)
        pooler = reader.linear(head.pooler, activation=of_product)
    return Exit(
        head.pooling,
        pooler,
        _head_weights(head.classifier, activation, multi_label, reader),
        norm=None if last_norm is None else reader.norm(last_norm),
        norms_tokens=head.pooling == "mean",
        state_norm=None if head.state_norm is None else reader.norm(head.state_norm),
        pools_states=head.pools_states,
    )


def _of_logits(classes: int, multi_label: bool, reader: Reader) -> Exit:
    """The exit of a classifier that runs as it is: of rows that are its logits."""
    same = torch.eye(classes, device=reader.device)
    weights = HeadWeights(same, same.new_zeros(classes), state_activation="none")
    return Exit("cls", None, weights._replace(multi_label=multi_label))


def _split_activation(name: str, something_follows: bool = False) -> tuple[str | None, str]:
    """The activation of the pooler's product, and that of the exit step; one of them is none."""
    in_exit_step = name in STATE_ACTIVATIONS and not something_follows
    return (None, name) if in_exit_step else (name, "none")


def _head_weights(
    classifier: nn.Linear, activation: str, multi_label: bool, reader: Reader, **policy: Any
) -> HeadWeights:
    weight = reader.exact(classifier.weight)
    bias = weight.new_zeros(len(weight))
    if classifier.bias is not None:
        bias = reader.exact(classifier.bias)
    return HeadWeights(weight, bias, **policy, state_activation=activation, multi_label=multi_label)
