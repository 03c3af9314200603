"""Measurements for a GPU that is at hand for minutes: one command, nothing to download.

    python bench/gpu_check.py --output runs/gpu_check.json
    python bench/gpu_check.py --device cpu      # the rehearsal, on small models

Rows run in a worker process, each within a time limit: what a row breaks, a later row does not see.
The JSON file is rewritten after every row. docs/gpu.md says what the rows are for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_figures import Figure, Measure, Row
from gpu_models import BERT_BASE, REHEARSAL, Bench
from gpu_rows import ROWS
from gpu_timing import Clock

from consistentee_ext import backend_report

ROOT = Path(__file__).parent.parent
START_UP = 60.0  # seconds a worker may take to import and to build its models
LEAST = 5.0  # seconds left, below which no row begins
MEASURED = "measured"


@dataclass
class Result:
    """What a row gave; `status` says whether all of it."""

    row: int
    title: str
    status: str = "not run"
    seconds: float = 0.0
    figures: list[Figure] = field(default_factory=list)


class Worker:
    """A process with the models, that measures the rows it is sent."""

    def __init__(self, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(device, other), daemon=True)
        self._process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def run(self, measure: Measure, result: Result, limit: float) -> bool:
        """Fill `result`; False where the worker cannot go on."""
        begin = time.monotonic()
        result.status = self._run(measure, result, begin + limit)
        result.seconds = time.monotonic() - begin
        return result.status == MEASURED

    def _run(self, measure: Measure, result: Result, deadline: float) -> str:
        try:
            self._connection.send(measure)
            while self._connection.poll(max(0.0, deadline - time.monotonic())):
                message = self._connection.recv()
                if isinstance(message, str):
                    return message
                result.figures.append(message)
        except (EOFError, OSError):
            self._process.join()
            return f"the process ended with code {self._process.exitcode}"
        return "stopped at its time limit"

    def close(self, wait: float = 0.0) -> None:
        """End the process; it may take `wait` seconds to end by itself."""
        self._connection.close()
        self._process.join(wait)
        self._process.kill()
        self._process.join()


def _work(device_name: str, connection: Connection) -> None:
    """The worker's side: of each measurement the figures, then a line that says how it ended."""
    device = torch.device(device_name)
    scale = REHEARSAL if device.type == "cpu" else BERT_BASE
    bench, clock = Bench(scale, device), Clock(device, scale.repeats)
    while True:
        try:
            measure: Measure = connection.recv()
        except EOFError:
            return
        try:
            for figure in measure(bench, clock):
                connection.send(figure)
            clock.synchronize()
        except Exception as error:  # whatever it is, it is this row's result
            lines = str(error).strip().splitlines() or [""]
            connection.send(f"failed: {type(error).__name__}: {lines[0][:300]}")
        else:
            connection.send(MEASURED)


def check(device: str, rows: Mapping[int, Row], seconds: float) -> Iterator[list[Result]]:
    """Measure the rows in order, within `seconds`; the results so far after each."""
    results = [Result(number, row.title) for number, row in rows.items()]
    end = time.monotonic() + seconds
    ahead = sum(row.limit for row in rows.values())
    worker: Worker | None = None
    for done, (row, result) in enumerate(zip(rows.values(), results, strict=True), start=1):
        left = end - time.monotonic()
        if left < LEAST:
            result.status = "not run: out of time"
        else:
            start_up = 0.0 if worker else START_UP
            worker = worker or Worker(device)
            if not worker.run(row.measure, result, min(row.limit + start_up, left)):
                worker.close()
                worker = None
        ahead -= row.limit
        left = max(0.0, min(end - time.monotonic(), ahead))
        _say(
            f"row {result.row}, {result.title}: {result.status}, {len(result.figures)} figures in "
            f"{result.seconds:.0f} s; {done} of {len(rows)} rows, at most {left:.0f} s left"
        )
        yield results
    if worker:
        worker.close(wait=START_UP)


def environment(device: torch.device) -> dict[str, Any]:
    """Card, driver, versions, commit: what a figure is of."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "commit": _commit(),
        "device": platform.processor() or platform.machine(),
        "backends": backend_report(device).splitlines(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": version("triton") if find_spec("triton") else None,
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
        found["driver"] = _first_line(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    return found


def _commit() -> str | None:
    """Of the tree, or CONSISTENTEE_COMMIT where the tree came without its history."""
    return os.environ.get("CONSISTENTEE_COMMIT") or _first_line("git", "rev-parse", "HEAD")


def _first_line(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.partition("\n")[0].strip() or None if run.returncode == 0 else None


def write(path: Path, about: dict[str, Any], results: list[Result]) -> None:
    """The JSON file, whole or not at all."""
    rows = [
        asdict(result) | {"figures": [figure._asdict() for figure in result.figures]}
        for result in results
    ]
    text = json.dumps(about | {"rows": rows}, indent=1)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def table(about: dict[str, Any], results: list[Result]) -> Iterator[str]:
    """All figures, row by row."""
    yield ", ".join(f"{name} {about[name]}" for name in about if name != "backends")
    yield from about["backends"]
    for result in results:
        yield f"-- {result.row}. {result.title}: {result.status}, {result.seconds:.0f} s"
        for name, value, unit, note in result.figures:
            shown = "-" if value is None else f"{value:.4g}"
            yield f"{name:<44} {shown:>9} {unit:<8} {note}".rstrip()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure this machine's GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all rows together")
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu_check.json")
    chosen = parser.parse_args()
    if not chosen.seconds > 0.0:
        parser.error(f"argument --seconds: expected a number above 0, got {chosen.seconds}")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: torch finds no CUDA device; --device cpu rehearses")
    try:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: {error}")
    return chosen


def main() -> int:
    chosen = arguments()
    about = environment(torch.device(chosen.device))
    results: list[Result] = []
    rows = {number: ROWS[number] for number in chosen.rows}
    for results in check(chosen.device, rows, chosen.seconds):
        write(chosen.output, about, results)
    for line in table(about, results):
        print(line)
    print(f"written to {chosen.output}")
    return 0 if all(result.status == MEASURED for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
