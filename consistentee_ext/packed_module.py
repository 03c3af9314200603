"""A module that runs an engine: when its rows leave, where its weights are, what its copies are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import override

from consistentee_ext.backend import availability, select_backend
from consistentee_ext.configuration import level_threshold
from consistentee_ext.drop_in import DropIn
from consistentee_ext.engines import choose_engine
from consistentee_ext.engines.device import SYNC
from consistentee_ext.exits.exits import Exits, check_exit_criterion, resolve_thresholds
from consistentee_ext.exits.head import alpha_feature, check_alpha
from consistentee_ext.layers import GenericStack, Stack


class PackedModule(DropIn):
    """A stack and its exits on an engine; `FastEarlyExitEncoder` says what the arguments are."""

    def __init__(
        self,
        config: Any,
        stack: Stack | GenericStack,
        exits: Exits,
        backend: str | None,
        alpha: float | None,
        sync: str,
    ) -> None:
        super().__init__(config, stack.dtype, stack.device)
        self.backend = select_backend(self.device, backend)
        if sync not in SYNC:
            raise ValueError(f"sync: expected one of {SYNC}, got {sync!r}")
        self._sync = sync
        self.exit_layers = exits.layers
        self._engine = choose_engine(stack, exits, self.backend, sync)
        self._limits = stack.limits
        self._alpha: float | None = None
        if alpha is None and getattr(config, "alpha_range", None) is not None:
            alpha = config.alpha
        if alpha is not None:
            self.alpha = alpha

    @property
    def num_layers(self) -> int:
        """L, the layers of the full model."""
        layers: int = self._engine.stack.num_layers
        return layers

    @property
    def max_positions(self) -> int:
        """The longest row the model takes, in tokens."""
        return self._limits.max_length

    @property
    def max_tokens(self) -> int:
        """Texts are cut to so many tokens: those a checkpoint was trained with, if fewer than the
        model takes.
        """
        trained: int | None = getattr(self.config, "max_tokens", None)
        return min(self.max_positions, trained or self.max_positions)

    @property
    def threshold(self) -> float | dict[int, float]:
        """The score above which a row leaves, in (0, 1]: lower is faster, 1 is full depth.

        Set a number, a sequence with one for each early exit layer, or a mapping from layer to
        number; it holds from the next call on. Reads as a number where all layers share it.
        """
        by_layer = self._engine.exits.threshold_by_layer
        values = set(by_layer.values())
        if not values:
            return 1.0
        return values.pop() if len(values) == 1 else dict(by_layer)

    @threshold.setter
    def threshold(self, value: float | Sequence[float] | Mapping[int, float]) -> None:
        by_layer = resolve_thresholds(value, self.exit_layers[:-1])
        self._set_exits(threshold_by_layer=by_layer)

    @property
    def level(self) -> str | None:
        """The calibrated level in force: a threshold by name, with a guarantee.

        Set a name of ``config.levels``, which ``consistentee calibrate --level`` writes; it holds
        from the next call on. None where the threshold is of no level. The guarantee is of the
        checkpoint's criterion, exit layers and alpha: with others no level can be set, and setting
        another leaves the level.
        """
        return self._engine.exits.level

    @level.setter
    def level(self, name: str) -> None:
        threshold = level_threshold(self.config, name)
        self._check_as_calibrated()
        by_layer = resolve_thresholds(threshold, self.exit_layers[:-1])
        self._set_exits(threshold_by_layer=by_layer, level=name)

    @property
    def criterion(self) -> str:
        """The exit criterion, one of `consistentee_ext.criteria.CRITERIA`.

        Set another one; it holds from the next call on.
        """
        return self._engine.exits.criterion

    @criterion.setter
    def criterion(self, value: str) -> None:
        self._set_exits(criterion=check_exit_criterion(value, self._engine.exits.by_layer))

    @property
    def alpha(self) -> float | None:
        """The price of a layer that the policies of an adjustable model go by: higher is faster.

        Set a number in the model's ``alpha_range``; it holds from the next call on. None for a
        model that was trained for one price.
        """
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = check_alpha(value, getattr(self.config, "alpha_range", None))
        feature = alpha_feature(self._alpha, self.config.alpha_range).item()
        by_layer = self._engine.exits.by_layer
        self._set_exits(by_layer={layer: e.at_alpha(feature) for layer, e in by_layer.items()})

    @override
    def extra_repr(self) -> str:
        """What runs: the model's type, the backend, the engine."""
        kind = getattr(self.config, "backbone", self.config).model_type
        return f"{kind}, backend {self.backend}, {self._engine.description}"

    @override
    def _engine_parts(self) -> tuple[Stack | GenericStack, Exits]:
        return self._engine.stack, self._engine.exits

    @override
    def _start_engine(self, stack: Stack | GenericStack, exits: Exits) -> None:
        if not availability(self.backend, self.device).usable:
            self.backend = select_backend(self.device)
        self._engine = choose_engine(stack, exits, self.backend, self._sync)

    def _check_as_calibrated(self) -> None:
        """Raise ValueError unless rows leave as they did when levels were calibrated."""
        config = self.config
        asked = {"criterion": self.criterion, "exit_layers": self.exit_layers, "alpha": self.alpha}
        calibrated = {
            "criterion": getattr(config, "criterion", self.criterion),
            "exit_layers": tuple(range(1, self.num_layers + 1)),
            "alpha": None if self.alpha is None else config.alpha,
        }
        for name, value in calibrated.items():
            if asked[name] != value:
                raise ValueError(
                    f"level: expected {name} {value}, with which levels are calibrated, got "
                    f"{asked[name]}"
                )

    def _set_exits(self, level: str | None = None, **changes: Any) -> None:
        # One assignment: a pass under way in another thread keeps the engine it began with.
        exits = replace(self._engine.exits, level=level, **changes)
        self._engine = self._engine.with_exits(exits)
