"""Whole passes by the Triton kernels, in Triton's interpreter; test_triton.py runs this."""

from __future__ import annotations

import pytest
import torch
from support.models import random_batch, tiny_model

from consistentee_ext import FastEarlyExitEncoder


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_whole_pass(sync: str, pooling: str) -> None:
    """The encoder's own loop, launching these kernels: the same results as plain PyTorch."""
    model = tiny_model(pooling, seed=3)
    batch = random_batch([5, 1, 17, 9, 41], seed=3)
    outputs = [
        FastEarlyExitEncoder(model, backend=backend, threshold=0.6, sync=sync)(**batch)
        for backend in ("triton", "torch")
    ]
    found, expected = outputs
    assert len(set(expected.exit_layers.tolist())) > 1
    assert torch.equal(found.exit_layers, expected.exit_layers)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-4, rtol=1e-4)
