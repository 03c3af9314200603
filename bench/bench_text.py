"""Whole passes over a data set: every engine, MiniLM-L6, batches of 32.

All run the same trained weights on the same token ids; tokenisation is outside. Other models,
lengths and batch sizes: bench/compare.py.
"""

from __future__ import annotations

import pytest
import torch
from engines import ENGINES, OURS
from pytest_benchmark.fixture import BenchmarkFixture
from workloads import load_workload

ROUNDS = 5


@pytest.mark.parametrize("name", ENGINES)
def bench_text(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with capsys.disabled():  # the first call may train
        workload = load_workload("minilm", "sst2", batch_size=32)
    benchmark.group = workload.name
    with torch.inference_mode():
        try:
            run = ENGINES[name](workload)
        except ImportError as error:
            pytest.skip(f"{name}: {error}")
        logits = benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    accuracy = workload.accuracy(logits)
    # No row is fast by being wrong.
    notes = [] if accuracy is None else [f"accuracy {accuracy:.2%}"]
    if name.startswith(OURS):
        notes.append(f"layer ratio {workload.layer_ratio:.2f}")
    benchmark.extra_info |= {"row": name, "ours": name == OURS, "note": ", ".join(notes)}
