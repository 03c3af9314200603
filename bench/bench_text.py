"""Whole passes over a data set: MiniLM-L6, batches of 32, float32 unless a row says otherwise.

Every row runs the same trained weights on the same token ids; tokenisation is outside.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import published_early_exit
from conftest import Workload
from pytest_benchmark.fixture import BenchmarkFixture

from consistentee.evaluation import full_depth_logits

ROUNDS = 5
Pass = Callable[[], torch.Tensor]


def measure(
    benchmark: BenchmarkFixture, workload: Workload, row: str, run: Pass, ours: bool = False
) -> torch.Tensor:
    """Time `run`; note the accuracy of its logits, so that no row is fast by being wrong."""
    benchmark.group = f"{workload.name}: {len(workload.labels)} rows, batches of 32"
    with torch.inference_mode():
        logits = benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    accuracy = (logits.argmax(-1) == workload.labels).double().mean().item()
    benchmark.extra_info |= {"row": row, "ours": ours, "note": f"accuracy {accuracy:.2%}"}
    return logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def bench_hugging_face(benchmark: BenchmarkFixture, workload: Workload, attention: str) -> None:
    workload.model.set_attn_implementation(attention)
    measure(
        benchmark,
        workload,
        f"Hugging Face, full depth, {attention} attention",
        lambda: torch.cat([full_depth_logits(workload.model, b) for b in workload.batches]),
    )


def bench_published(benchmark: BenchmarkFixture, workload: Workload) -> None:
    workload.model.set_attn_implementation("sdpa")
    measure(
        benchmark,
        workload,
        "the published way: batch 1, early exit",
        lambda: torch.cat([published_early_exit(workload.model, row) for row in workload.rows]),
    )


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("ours, full depth", {"threshold": 1.0}),
        ("ours, exits, torch backend", {"backend": "torch"}),
        ("ours, exits", {}),
        ("ours, exits, bfloat16", {"dtype": torch.bfloat16}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def bench_ours(benchmark: BenchmarkFixture, workload: Workload, row: str, options: dict) -> None:
    encoder = workload.encoder(**options)
    measure(
        benchmark,
        workload,
        row,
        lambda: torch.cat([encoder(**batch).logits for batch in workload.batches]),
        ours=row == "ours, exits",
    )
    layers = torch.cat([encoder(**batch).exit_layers for batch in workload.batches])
    ratio = encoder.num_layers / layers.double().mean().item()
    benchmark.extra_info["note"] += f", layer ratio {ratio:.2f}"
    benchmark.extra_info["layer_ratio"] = ratio


def bench_ours_one_by_one(benchmark: BenchmarkFixture, workload: Workload) -> None:
    encoder = workload.encoder()
    measure(
        benchmark,
        workload,
        "ours, exits, batch 1",
        lambda: torch.cat([encoder(**row).logits for row in workload.rows]),
    )
