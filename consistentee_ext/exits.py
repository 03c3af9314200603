"""The exits of a model, ready to run: which layers have one, their weights, the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext import ops
from consistentee_ext.criteria import check_threshold
from consistentee_ext.heads import ExitHead, Policy
from consistentee_ext.linear import Linear
from consistentee_ext.packed import ExitDecision, ExitState, HeadWeights, PackedBatch


@dataclass(frozen=True)
class Exit:
    """The exit of one layer: pooling, the pooler's product, and what the exit step reads.

    The speed asked for is the same for all rows: what an adjustable policy makes of it is
    ``speed * speed_weight + still_bias``, a bias of its hidden layer like any other.
    """

    pooling: str
    pooler: Linear
    weights: HeadWeights
    speed_weight: Tensor | None = None
    still_bias: Tensor | None = None

    @classmethod
    def from_modules(
        cls,
        pooling: str,
        pooler: nn.Linear,
        classifier: nn.Linear,
        policy: Policy | None,
        dtype: torch.dtype,
        device: torch.device,
        backend: str,
    ) -> Exit:
        """The pooler in `dtype`; classifier and policy, which are small, in float32."""

        def exact(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, torch.float32).contiguous()

        policy_weights: tuple[Any, ...] = ()
        speed_weights: tuple[Tensor, ...] = ()
        if policy is not None:
            dense_weight = policy.dense.weight
            if policy.adjustable:
                speed_weights = (exact(dense_weight[:, -1]), exact(policy.dense.bias))
                dense_weight = dense_weight[:, :-1]
            policy_weights = (
                exact(dense_weight),
                exact(policy.dense.bias),
                exact(policy.score.weight).view(-1),
                exact(policy.score.bias),
                policy.policy_input,
            )
        return cls(
            pooling,
            Linear(
                pooler.weight.detach().to(device, dtype),
                pooler.bias.detach().to(device, dtype),
                backend=backend,
            ),
            HeadWeights(exact(classifier.weight), exact(classifier.bias), *policy_weights),
            *speed_weights,
        )

    def at_speed(self, speed: float) -> Exit:
        """This exit with a policy that reads this speed, where the policy is adjustable."""
        if self.speed_weight is None:
            return self
        assert self.still_bias is not None
        bias = torch.add(self.still_bias, self.speed_weight, alpha=speed)
        return replace(self, weights=self.weights._replace(dense_bias=bias))

    def step(
        self, batch: PackedBatch, decision: ExitDecision, results: ExitState, backend: str
    ) -> PackedBatch:
        """Pool, classify, decide, write the results; returns the rows that stay."""
        pooled = self.pooler(ops.pool(batch, self.pooling, backend))
        return ops.exit_step(batch, pooled, self.weights, decision, results, backend)


def model_exits(
    model: Any, dtype: torch.dtype, device: torch.device, backend: str
) -> dict[int, Exit]:
    """The exits of a model by layer (1-based); a plain BERT classifier has one, at the last."""
    where = (dtype, device, backend)
    if hasattr(model, "heads"):
        heads: Sequence[ExitHead] = model.heads
        pooling = model.config.pooling
        return {
            layer: Exit.from_modules(pooling, head.pooler, head.classifier, head.policy, *where)
            for layer, head in enumerate(heads, start=1)
        }
    return {
        model.config.num_hidden_layers: Exit.from_modules(
            "cls", model.bert.pooler.dense, model.classifier, None, *where
        )
    }


def choose_exit_layers(available: Sequence[int], chosen: Sequence[int] | None) -> tuple[int, ...]:
    """The layers at which rows may leave, ascending; the last layer is always one of them."""
    last = max(available)
    if chosen is None:
        return tuple(sorted(available))
    if not isinstance(chosen, Sequence):
        raise TypeError(
            f"exit_layers: expected a sequence of integers, got {type(chosen).__name__}"
        )
    unknown = [layer for layer in chosen if layer not in available]
    if unknown:
        raise ValueError(f"exit_layers: expected some of {sorted(available)}, got {unknown[0]!r}")
    return tuple(sorted({*chosen, last}))


def resolve_thresholds(
    value: float | Sequence[float] | Mapping[int, float], early: Sequence[int]
) -> dict[int, float]:
    """One threshold an early exit layer, from one number, one a layer in order, or by layer."""
    if isinstance(value, Mapping):
        if sorted(value) != sorted(early):
            raise ValueError(
                f"threshold: expected one for each of the exit layers {list(early)}, "
                f"got layers {list(value)}"
            )
        return {layer: check_threshold(value[layer]) for layer in early}
    if not isinstance(value, (int, float, str)) and isinstance(value, Sequence):
        if len(value) != len(early):
            raise ValueError(
                f"threshold: expected {len(early)} numbers, one for each of the exit layers "
                f"{list(early)}, got {len(value)}"
            )
        return {layer: check_threshold(t) for layer, t in zip(early, value, strict=True)}
    return dict.fromkeys(early, check_threshold(value))
