"""BERT-base on a GPU in bfloat16: ours with exits, eager, lagged and by Triton, beside full depth.

Timed by CUDA events; skipped without a card. All rows of a batch have one length; they leave by the
shares of `workloads.EXIT_SHARES`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from workloads import EXIT_SHARES, Batch, load_workload, set_exit_shares

from consistentee.evaluation import full_depth_logits
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.backend import availability

ROUNDS = 9
OURS = "ours, exits"


def make_batch(rows: int, length: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (rows, length), generator=generator)
    return {
        "input_ids": ids.cuda(),
        "attention_mask": torch.ones_like(ids).cuda(),
        "token_type_ids": torch.zeros_like(ids).cuda(),
    }


def ours(batch: Batch, backend: str, sync: str, exits: bool = True) -> Callable[[], Any]:
    found = availability(backend, torch.device("cuda"))
    if not found.usable:
        pytest.skip(f"{backend}: {found.reason}")
    model = load_workload("bert-base", "sst2", 32).model
    encoder = FastEarlyExitEncoder(
        model,
        dtype=torch.bfloat16,
        device="cuda",
        backend=backend,
        sync=sync,
        exit_layers=None if exits else [],
    )
    if exits:
        set_exit_shares(encoder, [batch], EXIT_SHARES)
    return lambda: encoder(**batch)


def hugging_face(batch: Batch, attention: str, compiled: bool = False) -> Callable[[], Any]:
    model = deepcopy(load_workload("bert-base", "sst2", 32).model)
    model.set_attn_implementation(attention)
    model = model.to("cuda", torch.bfloat16)
    run = torch.compile(full_depth_logits) if compiled else full_depth_logits
    return lambda: run(model, batch)


ENGINES: dict[str, Callable[[Batch], Callable[[], Any]]] = {
    "Hugging Face, sdpa attention": lambda batch: hugging_face(batch, "sdpa"),
    "Hugging Face, flash attention": lambda batch: hugging_face(batch, "flash_attention_2"),
    "torch.compile": lambda batch: hugging_face(batch, "sdpa", compiled=True),
    "ours, full depth": lambda batch: ours(batch, "cuda", "eager", exits=False),
    OURS: lambda batch: ours(batch, "cuda", "auto"),
    "ours, exits, eager": lambda batch: ours(batch, "cuda", "eager"),
    "ours, exits, lagged": lambda batch: ours(batch, "cuda", "lagged"),
    "ours, exits, Triton": lambda batch: ours(batch, "triton", "auto"),
}


class EventClock:
    """The seconds of the current stream, by CUDA events: a timer for pytest-benchmark."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last: torch.cuda.Event | None = None

    def __call__(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self.last is not None:
            # From event to event: as one long span, in float32, it would lose the microseconds.
            self.seconds += self.last.elapsed_time(event) / 1e3
        self.last = event
        return self.seconds


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.benchmark(timer=EventClock())
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("length", [32, 128, 512])
@pytest.mark.parametrize("rows", [1, 8, 32, 128, 512])
def bench_gpu(benchmark: BenchmarkFixture, rows: int, length: int, name: str) -> None:
    card = torch.cuda.get_device_name()
    benchmark.group = f"BERT-base, bf16, {rows} rows of {length} tokens, {card}"
    batch = make_batch(rows, length)
    with torch.inference_mode():
        try:
            run = ENGINES[name](batch)
        except ImportError as error:
            pytest.skip(f"{name}: {error}")
        benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=3)
    benchmark.extra_info |= {"row": name, "ours": name == OURS, "note": ""}
