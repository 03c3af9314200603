"""bench/gpu_check.py: rows that fail, crash or hang are reported, and the next ones run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import gpu_check  # noqa: E402 - found by the line above
from exit_shares import EXIT_SHARES, set_exit_shares  # noqa: E402
from gpu_figures import Figure, Row  # noqa: E402
from gpu_models import REHEARSAL, Bench  # noqa: E402
from gpu_rows import ROWS  # noqa: E402
from gpu_timing import Clock  # noqa: E402


def good(bench: Bench, clock: Clock) -> Iterator[Figure]:
    yield Figure("layers", float(bench.layers), "")


def failing(bench: Bench, clock: Clock) -> Iterator[Figure]:
    yield Figure("before", 1.0, "us")
    raise RuntimeError("CUDA error: an illegal memory access\nmore lines")


def crashing(bench: Bench, clock: Clock) -> Iterator[Figure]:
    yield Figure("before", 2.0, "us")
    os._exit(7)


def hanging(bench: Bench, clock: Clock) -> Iterator[Figure]:
    yield Figure("before", 3.0, "us")
    time.sleep(600.0)


def run(rows: dict[int, Row], seconds: float = 300.0) -> list[gpu_check.Result]:
    *_, results = gpu_check.check("cpu", rows, seconds)
    return results


@pytest.mark.slow
def test_a_row_that_ends_badly_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "START_UP", 30.0)
    rows = {
        1: Row("good", 30.0, good),
        2: Row("failing", 30.0, failing),
        3: Row("crashing", 30.0, crashing),
        4: Row("good again", 30.0, good),
        5: Row("hanging", 1.0, hanging),
        6: Row("good at last", 30.0, good),
    }
    results = run(rows)
    assert [result.status for result in results] == [
        "measured",
        "failed: RuntimeError: CUDA error: an illegal memory access",
        "the process ended with code 7",
        "measured",
        "stopped at its time limit",
        "measured",
    ]
    layers = Figure("layers", 4.0, "")
    assert [result.figures for result in results] == [
        [layers],
        [Figure("before", 1.0, "us")],
        [Figure("before", 2.0, "us")],
        [layers],
        [Figure("before", 3.0, "us")],
        [layers],
    ]
    assert results[4].seconds < 10.0


@pytest.mark.slow
def test_rows_beyond_the_time_are_not_begun() -> None:
    results = run({1: Row("hanging", 100.0, hanging), 2: Row("good", 100.0, good)}, seconds=12.0)
    assert [result.status for result in results] == [
        "stopped at its time limit",
        "not run: out of time",
    ]
    assert sum(result.seconds for result in results) < 20.0


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    figures = [Figure("copy", 3.0, "TB/s"), Figure("none", None, "us", "not supported")]
    result = gpu_check.Result(3, "ceilings", "measured", 1.5, figures)
    file = tmp_path / "check.json"
    about = gpu_check.environment(torch.device("cpu"))
    gpu_check.write(file, about, [result])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["torch"] == torch.__version__
    assert found["rows"] == [
        {
            "row": 3,
            "title": "ceilings",
            "status": "measured",
            "seconds": 1.5,
            "figures": [
                {"name": "copy", "value": 3.0, "unit": "TB/s", "note": ""},
                {"name": "none", "value": None, "unit": "us", "note": "not supported"},
            ],
        }
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["check.json"]
    lines = list(gpu_check.table(about, [result]))
    assert lines[-3:] == [
        "-- 3. ceilings: measured, 2 s",
        f"{'copy':<44} {'3':>9} TB/s",
        f"{'none':<44} {'-':>9} us       not supported",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "argument --seconds: expected a number above 0, got 0.0"),
        (["--rows", "2"], "argument --rows: invalid choice: 2"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--device", "cpu", "--output", "/dev/null/x/y.json"], "argument --output: "),
    ],
)
def test_bad_arguments_end_in_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_rows_are_those_of_the_plan() -> None:
    assert list(ROWS) == list(range(3, 12))


def test_models_are_what_they_are_named() -> None:
    """The same weights in all of them; the shares of the rows that leave are those asked for."""
    bench = Bench(REHEARSAL, torch.device("cpu"))
    batches = [bench.batch(40, 12), bench.batch(40, 12)]
    encoder = bench.exiting(batches)
    exits = torch.cat([encoder(**batch).exit_layers for batch in batches])
    shares = [sum(EXIT_SHARES[i : i + 3]) for i in range(0, 12, 3)]
    found = [(exits == layer).double().mean().item() for layer in range(1, 5)]
    assert found == pytest.approx(shares, abs=1 / 80 + 1e-9)
    set_exit_shares(encoder, batches, (1.0, 0.0, 0.0, 0.0))
    assert encoder(**batches[0]).exit_layers.tolist() == [1] * 40
    trunk = bench.stock_classifier().bert.state_dict()
    for name, weight in bench.model.backbone.state_dict().items():
        assert torch.equal(trunk[name], weight.to(trunk[name].dtype)), name


def test_clock_times_what_it_is_given() -> None:
    clock = Clock(torch.device("cpu"), repeats=3)
    seconds = clock.medians({"short": lambda _: None, "long": lambda _: time.sleep(0.02)})
    assert seconds["short"] < 0.01 < seconds["long"] < 0.2
    numbers: list[int] = []
    clock.replayed(numbers.append, 3)
    assert numbers[-3:] == [0, 1, 2]
