"""Times on a device: events around calls, or replays of a CUDA graph; a host clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

WARM_UP = 12  # three times each set of inputs: launched, recorded as graphs, replayed

# A pass over the inputs of a number: callers rotate them, so that no cache holds them.
Run = Callable[[int], Any]


class Clock:
    """Medians of `repeats` timed calls on `device`, in seconds."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self._on_gpu = device.type == "cuda"

    def synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self.device)

    def once(self, run: Run, number: int) -> float:
        """Seconds of one call that begins on an idle device, by events on its stream."""
        self.synchronize()
        if not self._on_gpu:
            begin = time.perf_counter()
            run(number)
            return time.perf_counter() - begin
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run(number)
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def median(self, run: Run) -> float:
        return self.medians({"": run})[""]

    def medians(self, runs: Mapping[str, Run]) -> dict[str, float]:
        """The median of each run; they take turns, so that all see the same clock rates."""
        for run in runs.values():
            for number in range(WARM_UP):
                run(number)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(self.repeats):
            for name, run in runs.items():
                seconds[name].append(self.once(run, number))
        return {name: statistics.median(times) for name, times in seconds.items()}

    def replayed(self, run: Run, calls: int) -> float:
        """The median time of a call, of `calls` side by side in a CUDA graph: no gaps between."""
        if not self._on_gpu:
            return self.median(run)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for number in range(WARM_UP):
                run(number)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(calls):
                run(number)
        return self.median(lambda _: graph.replay()) / calls
