"""Would survivors of several batches, pooled into one, serve more rows? A model says: hardly.

A layer over T tokens takes ``max(floor, a + b T)``. Rows arrive at random (Poisson), each leaves at
a layer drawn from fixed shares. A server takes the rows that wait, up to a budget of tokens, and
runs them in one of two ways:

- in-batch: all layers, the batch shrinking as rows leave (what the server does);
- pooled: one layer at a time of whichever pool of rows at the same layer is chosen: the deepest
  full one, else that of a row that has waited for 0.35 of the limit, else the largest.

Printed: rows a second at which the 99th percentile of the seconds to an answer reaches the limit,
over those of full depth; and the median at a load of 0.8 with answers at the exits over answers at
the batch's end.

    python experiments/survivor_pooling.py
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Share of rows that leave at each of 12 layers: a layer ratio of 2.2 (bench/exit_shares.py).
SHARES = (0.0, 0.22, 0.18, 0.15, 0.1, 0.08, 0.0, 0.07, 0.0, 0.0, 0.0, 0.2)
LAYERS = len(SHARES)
URGENT = 0.35  # of the limit


@dataclass(frozen=True)
class Device:
    """What a layer over T tokens takes, in seconds: ``max(floor, a + b T)``."""

    name: str
    floor: float
    a: float
    b: float

    def seconds(self, tokens: int) -> float:
        return max(self.floor, self.a + self.b * tokens)


@dataclass(frozen=True)
class Case:
    """A device, the tokens of a row and of a batch at most, and the limit in seconds."""

    device: Device
    tokens: int
    budget: int
    limit: float

    @property
    def rows(self) -> int:
        return max(1, self.budget // self.tokens)


CPU_FP32 = Device("two cores, float32", 1.1e-3, 200e-6, 33.2e-6)
CPU_BF16 = Device("two cores, bfloat16", 0.64e-3, 130e-6, 16.5e-6)
H100_GRAPH = Device("H100, graphs", 30e-6, 10e-6, 0.0305e-6)
H100_LAUNCH = Device("H100, launches", 85e-6, 10e-6, 0.0305e-6)
CASES = (
    Case(CPU_FP32, 26, 2048, 1.0),
    Case(CPU_BF16, 26, 2048, 0.3),
    Case(H100_GRAPH, 128, 2048, 2.5e-3),
    Case(H100_GRAPH, 128, 4096, 5e-3),
    Case(H100_GRAPH, 128, 8192, 10e-3),
    Case(H100_GRAPH, 32, 4096, 5e-3),
    Case(H100_LAUNCH, 128, 4096, 5e-3),
    Case(H100_LAUNCH, 128, 16384, 5e-3),
)
Arrays = tuple[np.ndarray, np.ndarray]  # when rows arrive; the layers at which they leave
Serve = Callable[[Case, Arrays], np.ndarray]  # the seconds until each row's answer


def in_batch(case: Case, rows: Arrays, at_end: bool = False) -> np.ndarray:
    arrive, leave = rows
    answered, now, first = np.zeros(len(arrive)), 0.0, 0
    while first < len(arrive):
        now = max(now, arrive[first])
        there = int(np.searchsorted(arrive, now, side="right"))
        last = min(there, first + case.rows)
        exits = leave[first:last]
        for layer in range(1, exits.max() + 1):
            now += case.device.seconds(int((exits >= layer).sum()) * case.tokens)
            answered[first:last][exits == layer] = now
        if at_end:
            answered[first:last] = now
        first = last
    return answered - arrive


def pooled(case: Case, rows: Arrays) -> np.ndarray:
    arrive, leave = rows
    answered, now, first = np.zeros(len(arrive)), 0.0, 0
    pools: list[deque[int]] = [deque() for _ in range(LAYERS)]  # by layers that their rows ran
    while first < len(arrive) or any(pools):
        if not any(pools):
            now = max(now, arrive[first])
        while first < len(arrive) and arrive[first] <= now:
            pools[0].append(first)
            first += 1
        pool = _choose(case, pools, arrive, now)
        taken = [pools[pool].popleft() for _ in range(min(case.rows, len(pools[pool])))]
        now += case.device.seconds(len(taken) * case.tokens)
        for row in taken:
            if leave[row] == pool + 1:
                answered[row] = now
            else:
                pools[pool + 1].append(row)
    return answered - arrive


def _choose(case: Case, pools: list[deque[int]], arrive: np.ndarray, now: float) -> int:
    filled = [pool for pool in range(LAYERS) if pools[pool]]
    full = [pool for pool in filled if len(pools[pool]) >= case.rows]
    if full:
        return full[-1]
    oldest = min(filled, key=lambda pool: arrive[pools[pool][0]])
    if now - arrive[pools[oldest][0]] > URGENT * case.limit:
        return oldest
    return max(filled, key=lambda pool: len(pools[pool]))


def arrivals(rate: float, rows: int, shares: tuple[float, ...], seed: int = 0) -> Arrays:
    generator = np.random.default_rng(seed)
    times = generator.exponential(1 / rate, rows).cumsum()
    return times, generator.choice(np.arange(1, LAYERS + 1), rows, p=shares)


def capacity(serve: Serve, case: Case, shares: tuple[float, ...], rows: int) -> float:
    """The highest rate at which the 99th percentile is within the limit."""
    low, high = 0.0, 2 * case.rows / (case.device.seconds(case.budget) * 2)
    while high - low > 0.005 * high:
        middle = (low + high) / 2
        seconds = serve(case, arrivals(middle, rows, shares))
        low, high = (middle, high) if np.quantile(seconds, 0.99) <= case.limit else (low, middle)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8000)
    rows = parser.parse_args().rows
    full_depth = (0.0,) * (LAYERS - 1) + (1.0,)
    print("device, tokens of a row and a batch, limit: in-batch, pooled; median at the exits")
    for case in CASES:
        full = capacity(in_batch, case, full_depth, rows)
        batch, pool = (capacity(serve, case, SHARES, rows) for serve in (in_batch, pooled))
        load = arrivals(0.8 * batch, rows, SHARES)
        medians = [np.median(in_batch(case, load, at_end)) for at_end in (False, True)]
        shape = f"{case.device.name}, {case.tokens}, {case.budget}, {1000 * case.limit:g} ms"
        fewer = medians[0] / medians[1] - 1
        print(f"{shape}: {batch / full:.2f}x, {pool / full:.2f}x; {fewer:+.0%}")


if __name__ == "__main__":
    main()
