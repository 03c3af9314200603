"""A model without layers, on a clock without time: what a batcher asks of both is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from consistentee_ext.serving.batcher import Batcher
from consistentee_ext.serving.levels import Level
from consistentee_ext.serving.request import Answer, Request, Row

LAYERS = 4
LEVELS = (Level("exact", 1.0), Level("fast", 0.5), Level("faster", 0.2))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeSteps:
    """A row leaves at the layer that its first id says, or its bound, or when it is released."""

    def __init__(self, model: FakeModel, rows: Sequence[Row], bounds: Sequence[int | None]) -> None:
        self._model = model
        self._all = rows
        self._leave = [
            min(row.ids[0], bound or LAYERS) for row, bound in zip(rows, bounds, strict=True)
        ]
        self._left = list(range(len(rows)))
        self._layer = 0
        self._released: set[int] = set()

    def rows(self) -> list[int]:
        return list(self._left)

    def _tokens(self) -> int:
        return sum(len(self._all[row].ids) for row in self._left)

    def work(self, steps: int) -> int:
        return self._tokens() * min(steps, LAYERS - self._layer)

    def release(self, rows: list[int]) -> None:
        self._released.update(rows)
        self._model.released += [self._all[row].ids[-1] for row in rows]

    def step(self, whole: bool) -> list[tuple[int, Answer]]:
        self._model.steps.append(whole)
        gone = []
        while True:
            self._layer += 1
            self._model.clock.now += self._tokens() * self._model.seconds
            for row in list(self._left):
                forced = row in self._released
                if self._layer >= self._leave[row] or forced or self._layer == LAYERS:
                    cut = forced and self._layer < self._leave[row]
                    gone.append((row, Answer([float(self._all[row].ids[-1])], self._layer, cut)))
                    self._left.remove(row)
            if not whole or not self._left:
                return gone


class FakeModel:
    """Takes `seconds` for a token in a layer; `while_running` is called as a pass begins."""

    def __init__(self, clock: Clock, seconds: float = 0.001) -> None:
        self.clock = clock
        self.seconds = seconds
        self.batches: list[list[Row]] = []
        self.thresholds: list[list[float]] = []
        self.steps: list[bool] = []
        self.released: list[int] = []
        self.while_running: Callable[[], None] = lambda: None

    def start(
        self,
        rows: Sequence[Row],
        thresholds: Sequence[float],
        max_layers: Sequence[int | None],
    ) -> FakeSteps:
        self.batches.append(list(rows))
        self.thresholds.append(list(thresholds))
        self.while_running()
        return FakeSteps(self, rows, max_layers)


class Log:
    """What a batcher tells its observer."""

    def __init__(self) -> None:
        self.drops: dict[str, int] = {}
        self.levels: list[int] = []
        self.queued: list[int] = []
        self.answered = 0
        self.sizes: list[tuple[int, int]] = []

    def batch(self, rows: int, tokens: int) -> None:
        self.sizes.append((rows, tokens))

    def answers(self, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
        self.answered += len(answers)

    def state(self, queued_rows: int, queued_tokens: int, level: int) -> None:
        assert (queued_rows > 0) == (queued_tokens > 0)
        self.queued.append(queued_tokens)
        self.levels.append(level)

    def dropped(self, reason: str, rows: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + rows


class Bench:
    """A batcher with all that it is made of."""

    def __init__(self, levels: Sequence[Level] = LEVELS[:1], **limits: int) -> None:
        self.clock = Clock()
        self.model = FakeModel(self.clock)
        self.log = Log()
        self.delivered: list[Request] = []
        self.batcher = Batcher(
            self.model,
            self.delivered.extend,
            self.log,
            levels=levels,
            max_batch_tokens=limits.get("batch", 16),
            max_queue_tokens=limits.get("queue", 100),
            clock=self.clock,
        )
        self.number = 0

    def row(self, length: int = 4, layer: int = LAYERS) -> Row:
        """A row that leaves at `layer`; its last id is its own."""
        self.number += 1
        ids = [layer] + [0] * (length - 2) + [1000 + self.number]
        return Row(ids, [0] * length)

    def ask(self, *rows: Row, **options: float) -> Request:
        """Rows, queued."""
        request = Request(rows or (self.row(),), **options)  # type: ignore[arg-type]
        self.batcher.submit(request)
        return request

    def run(self) -> int:
        """All that is queued; how many batches."""
        count = 0
        while self.batcher.run_batch():
            count += 1
        return count
