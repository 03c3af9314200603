"""All exits of a model, ready to run: which layers have one, how they decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consistentee_ext.criteria import check_criterion, check_threshold
from consistentee_ext.exits.exit import Exit
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.packed import ExitDecision
from consistentee_ext.segments import first_lengths


@dataclass(frozen=True)
class Exits:
    """All that decides where rows leave; frozen, so that a pass sees one state from end to end.

    Attributes:
        by_layer: the layers at which rows may leave, ascending; the last layer is one of them.
        criterion: one of `consistentee_ext.criteria.CRITERIA`.
        threshold_by_layer: of every layer but the last.
        separator_id: the token between the two texts of a row, where an exit compares them.
        level: the name of the calibrated level that the thresholds are of; None for others.
        row_thresholds: ``[E, N]`` float32 of one pass of N rows, in place of `threshold_by_layer`.
        num_classes: C.
    """

    by_layer: Mapping[int, Exit]
    criterion: str
    threshold_by_layer: Mapping[int, float]
    separator_id: int | None = None
    level: str | None = None
    row_thresholds: Tensor | None = field(default=None, repr=False, compare=False)
    num_classes: int = field(init=False)
    _thresholds: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = [[self.threshold_by_layer.get(layer, 1.0)] for layer in self.by_layer]
        bias = self.last.weights.classifier_bias
        object.__setattr__(self, "num_classes", len(bias))
        object.__setattr__(
            self, "_thresholds", torch.tensor(values, dtype=torch.float32, device=bias.device)
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The keys of `by_layer`."""
        return tuple(self.by_layer)

    @property
    def last(self) -> Exit:
        """The exit at which every row leaves."""
        return self.by_layer[max(self.by_layer)]

    def thresholds(self, rows: int) -> Tensor:
        """One a layer and row, ``[E, N]`` float32."""
        if self.row_thresholds is not None:
            return self.row_thresholds
        return self._thresholds.expand(-1, rows)

    def first_lengths(self, inputs: PackedInputs) -> Tensor | None:
        """How long the first text of each row is, ``[N]`` int32; None where no exit compares."""
        return None if self.separator_id is None else first_lengths(inputs, self.separator_id)

    def decisions(self, rows: int) -> dict[int, ExitDecision]:
        """How each layer decides about rows of N results."""
        layers = self.layers
        return {
            layer: ExitDecision(
                criterion=self.criterion,
                thresholds=thresholds,
                layer=layer,
                max_streak=len(layers) - 1,
                last=layer == layers[-1],
            )
            for layer, thresholds in zip(layers, self.thresholds(rows), strict=True)
        }


def choose_exits(
    by_layer: Mapping[int, Exit],
    config: Any,
    exit_layers: Sequence[int] | None,
    criterion: str | None,
    threshold: float | Sequence[float] | Mapping[int, float] | None,
) -> Exits:
    """The exits of a model that are asked for; None is what its configuration says."""
    layers = choose_exit_layers(list(by_layer), exit_layers)
    by_layer = {layer: by_layer[layer] for layer in layers}
    if criterion is None:
        criterion = getattr(config, "criterion", "confidence")
    if threshold is None:
        threshold = getattr(config, "threshold", 0.5)
    thresholds = resolve_thresholds(threshold, layers[:-1])
    compares = any(exit_.pooling == "pair" for exit_ in by_layer.values())
    return Exits(
        by_layer,
        check_exit_criterion(criterion, by_layer),
        thresholds,
        config.separator_id if compares else None,
    )


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


def check_exit_criterion(criterion: object, by_layer: Mapping[int, Exit]) -> str:
    """The criterion; raises ValueError unless it is one that these exits can decide by."""
    *early, last = by_layer.values()
    name = check_criterion(criterion, last.weights.multi_label)
    if name == "policy" and any(exit_.weights.policy_input is None for exit_ in early):
        raise ValueError("criterion: expected one that needs no policy, as the model has none")
    return name


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
    if hasattr(value, "tolist"):  # an array's, a tensor's
        value = value.tolist()
    if not isinstance(value, (int, float, str)) and isinstance(value, Sequence):
        if len(value) != len(early):
            raise ValueError(
                f"threshold: expected {len(early)} numbers, one for each of the exit layers "
                f"{list(early)}, got {len(value)}"
            )
        return {layer: check_threshold(t) for layer, t in zip(early, value, strict=True)}
    return dict.fromkeys(early, check_threshold(value))
