"""Whole passes by the Triton kernels, in Triton's interpreter; test_triton.py runs this."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.models import SEEDS, as_pairs, random_batch, tiny_model

from consistentee_ext import FastEarlyExitEncoder


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_whole_pass(sync: str, pooling: str) -> None:
    """The encoder's own loop, launching these kernels: the same results as plain PyTorch."""
    model = tiny_model(pooling, seed=SEEDS[pooling])
    batch = as_pairs(random_batch([5, 1, 17, 9, 41], seed=3))
    outputs = [
        FastEarlyExitEncoder(model, backend=backend, threshold=0.6, sync=sync)(**batch)
        for backend in ("triton", "torch")
    ]
    found, expected = outputs
    assert len(set(expected.exit_layers.tolist())) > 1
    assert torch.equal(found.exit_layers, expected.exit_layers)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-4, rtol=1e-4)


def test_what_the_gpu_check_captures() -> None:
    """The passes that its graphs hold compute what the encoder does."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    from gpu_models import REHEARSAL, Bench, ExitStep, FullDepth

    bench = Bench(REHEARSAL, torch.device("cpu"))
    batch = bench.batch(3, 8)
    expected = bench.encoder("torch", exit_layers=[])(**batch).logits
    found = FullDepth(bench, batch, "triton").run()
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    step = ExitStep(bench, bench.packed([4] * 10), "triton", leave=0.2)
    assert step.copied_share() == pytest.approx(0.8)
