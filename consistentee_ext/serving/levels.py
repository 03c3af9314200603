"""Which speed the server runs at: slower where there is time, faster before anybody is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from consistentee_ext.configuration import level_threshold

# Shares of the queue's room: above the one the next faster level is taken, below the other the
# next slower one. Between them nothing changes, so that a level does not flicker.
HIGH, LOW = 0.5, 0.125
HOLD_SECONDS = 1.0  # between two changes: so long it takes to see what the last one did


@dataclass(frozen=True)
class Level:
    """A threshold by name."""

    name: str
    threshold: float


def ladder(config: Any, threshold: float, level: str | None) -> list[Level]:
    """The level that a server runs at, and after it the faster ones of the checkpoint in order.

    Args:
        config: the checkpoint's.
        threshold: the checkpoint's, which is ``default`` where no level is named.
        level: one of ``config.levels``.

    Raises:
        ValueError: no level has this name.
    """
    if level is not None:
        threshold = level_threshold(config, level)
    known = getattr(config, "levels", None) or {}
    others = [Level(name, level_threshold(config, name)) for name in known]
    faster = [other for other in others if other.threshold < threshold]
    faster.sort(key=lambda other: -other.threshold)
    return [Level(level or "default", threshold), *faster]


class BrownOut:
    """Goes down the ladder while the queue is full, and up again when it is nearly empty.

    Args:
        levels: slowest first.
        clock: seconds.
    """

    def __init__(self, levels: Sequence[Level], clock: Callable[[], float]) -> None:
        self.levels = levels
        self.index = 0
        self._clock = clock
        self._changed = clock() - HOLD_SECONDS

    @property
    def level(self) -> Level:
        """The one in force."""
        return self.levels[self.index]

    def observe(self, filled: float) -> None:
        """Take the share of the queue's room that is filled: one level down where that is much,
        up by one for each `HOLD_SECONDS` since the last change where it is little.
        """
        now = self._clock()
        held = int((now - self._changed) / HOLD_SECONDS)
        index = self.index
        if filled > HIGH:
            index = min(index + min(held, 1), len(self.levels) - 1)
        elif filled < LOW:
            index = max(index - held, 0)
        if index != self.index:
            self.index, self._changed = index, now
