"""Copies of an encoder, in this process and in others, and an encoder moved to another device."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.models import random_batch, tiny_model
from torch import Tensor

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.engines.native import NativeEngine

BATCH = random_batch([5, 1, 17, 9], seed=3)


def copies(encoder: FastEarlyExitEncoder) -> Iterator[Any]:
    yield copy.deepcopy(encoder)
    yield copy.copy(encoder)
    yield pickle.loads(pickle.dumps(encoder))
    buffer = io.BytesIO()
    torch.save(encoder, buffer)
    buffer.seek(0)
    yield torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copies_compute_the_same(dtype: torch.dtype) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), threshold=0.6, dtype=dtype)
    expected = encoder(**BATCH)
    for twin in copies(encoder):
        assert type(twin._engine) is type(encoder._engine)
        found = twin(**BATCH)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.exit_layers, expected.exit_layers)
        assert twin.threshold == encoder.threshold
        twin.threshold = 1.0
    assert encoder.threshold == 0.6


def answer(encoder: FastEarlyExitEncoder, batch: dict[str, Tensor]) -> list[list[float]]:
    return encoder(**batch).logits.tolist()


@pytest.mark.slow
def test_a_spawned_process() -> None:
    """A task of a pool, and an argument of a process, whose tensors torch shares by descriptors."""
    encoder, spawn = FastEarlyExitEncoder(tiny_model(seed=3)), multiprocessing.get_context("spawn")
    expected = answer(encoder, BATCH)
    with spawn.Pool(1) as pool:
        assert pool.apply_async(answer, (encoder, BATCH)).get(timeout=120) == expected
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=send_answer, args=(encoder, BATCH, theirs))
    process.start()
    assert ours.poll(120)
    assert ours.recv() == expected
    process.join()


def send_answer(encoder: FastEarlyExitEncoder, batch: dict[str, Tensor], pipe: Any) -> None:
    pipe.send(answer(encoder, batch))


def test_to_another_device_lays_the_weights_out_there() -> None:
    """`meta` is the one other device that is always there: it has shapes alone."""
    encoder = FastEarlyExitEncoder(tiny_model(seed=3))
    dense_weights = encoder.to("meta")._engine.stack.blocks[0].linears
    assert encoder.device.type == "meta"
    assert encoder.backend == "torch"
    assert all(weight.weight.device.type == "meta" for weight in dense_weights)
    assert next(encoder.parameters()).device.type == "meta"


@pytest.mark.needs_native
def test_the_native_engine_is_what_is_copied() -> None:
    assert isinstance(FastEarlyExitEncoder(tiny_model())._engine, NativeEngine)
