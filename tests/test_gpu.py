"""On a GPU: the ops against the reference, whole passes against the padded model.

Skipped without one; with CONSISTENTEE_FAIL_WITHOUT_CUDA=1 (`make test-gpu`) that is a failure.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from support.exit_cases import clone, make_batch, make_results, make_weights
from support.models import random_batch, tiny_model

from consistentee_ext import FastEarlyExitEncoder, ops, reference
from consistentee_ext.backend import availability
from consistentee_ext.heads import CRITERIA
from consistentee_ext.packed import ExitDecision, LayerNormWeights

WANTED = os.environ.get("CONSISTENTEE_FAIL_WITHOUT_CUDA") == "1"
if not (torch.cuda.is_available() or WANTED):
    pytest.skip("torch finds no CUDA device", allow_module_level=True)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> str:
    found = availability(request.param, torch.device("cuda"))
    if not (torch.cuda.is_available() and found.usable):
        (pytest.fail if WANTED else pytest.skip)(f"{request.param}: {found.reason}")
    return request.param


def on_gpu(value: tuple) -> Any:
    """A named tuple with its tensors on the GPU."""
    moved = (v.cuda() if isinstance(v, torch.Tensor) else v for v in value)
    return type(value)(*moved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy_input", [None, "state", "prediction", "both"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("rows", "hidden_size", "classes"), [(1, 8, 1), (7, 99, 5), (300, 768, 2), (33, 1024, 1024)]
)
def test_exit_step(
    gpu_backend: str,
    dtype: torch.dtype,
    policy_input: str | None,
    criterion: str,
    rows: int,
    hidden_size: int,
    classes: int,
) -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, 20, (rows,)).tolist()
    batch = make_batch(lengths, hidden_size, dtype)
    weights = make_weights(hidden_size, classes, policy_input)
    pooled = torch.randn(rows, hidden_size).to(dtype)
    expected = make_results(rows + 3, classes)
    found = on_gpu(clone(expected))
    probe = clone(expected)
    decision = ExitDecision(criterion, 0.5, layer=2, max_streak=4, last=True)
    reference.exit_step(batch, pooled, weights, decision, probe)
    # A threshold in the widest gap between two scores near the middle: rounding does not decide.
    scores = probe.exit_scores[batch.row_ids].sort().values
    middle = scores[rows // 4 : rows - rows // 4]
    threshold = 0.5
    if len(middle) > 1:
        widest = int(middle.diff().argmax())
        threshold = min(max(middle[widest : widest + 2].mean().item(), 1e-6), 1.0)
    decision = decision._replace(threshold=threshold, last=False)
    totals = torch.zeros(2, dtype=torch.int32)
    stay = reference.exit_step_ahead(batch, pooled, weights, decision, expected, totals)
    counters = torch.zeros(rows, dtype=torch.int32, device="cuda")
    on_host = torch.zeros(2, dtype=torch.int32).pin_memory()
    got = ops.exit_step_ahead(
        on_gpu(batch),
        pooled.cuda(),
        on_gpu(weights),
        decision,
        found,
        (counters, on_host),
        gpu_backend,
    )
    torch.cuda.synchronize()
    assert on_host.tolist() == totals.tolist()
    assert torch.equal(got.row_ids.cpu(), stay.row_ids)
    assert torch.equal(got.cu_seqlens.cpu(), stay.cu_seqlens)
    tokens = int(totals[1])
    assert torch.equal(got.hidden[:tokens].cpu(), stay.hidden[:tokens])
    assert not counters.any()
    for name in ("exit_layers", "labels", "streaks"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found.exit_scores.cpu(), expected.exit_scores, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [1, 19, 384, 768, 1024, 8192])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_add_norm_pool(
    gpu_backend: str, dtype: torch.dtype, hidden_size: int, pooling: str
) -> None:
    torch.manual_seed(0)
    lengths = [1, 31, 32, 33, 100, 512]
    batch = make_batch(lengths, hidden_size, dtype)
    other, weight, bias = (torch.randn(n, hidden_size).to(dtype) for n in (len(batch.hidden), 1, 1))
    norm = LayerNormWeights(weight[0], bias[0], 1e-5)
    exact = reference.add_norm(
        batch.hidden.double(), other.double(), norm[0].double(), norm[1].double(), 1e-5
    )
    eager = reference.add_norm(batch.hidden, other, *norm)
    counters = torch.zeros(len(lengths), dtype=torch.int32, device="cuda")
    residual = on_gpu(batch._replace(hidden=other))
    hidden, pooled = ops.add_norm_pool(
        batch.hidden.cuda(), residual, on_gpu(norm), 512, pooling, counters, gpu_backend
    )
    error = (hidden.cpu().double() - exact).abs().max()
    assert error <= 2 * (eager.double() - exact).abs().max() + 1e-6
    expected = reference.pool(hidden.cpu().double(), batch.cu_seqlens, pooling).double()
    tolerance = torch.finfo(dtype).eps * expected.abs().max().item()
    assert (pooled.cpu().double() - expected).abs().max() <= tolerance + 1e-6
    assert not counters.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_whole_passes(gpu_backend: str, dtype: torch.dtype, pooling: str) -> None:
    """The same from an eager and from a lagged host; near the padded model in float32."""
    model = tiny_model(pooling, seed=3)
    batch = random_batch([5, 1, 17, 9, 9, 30, 2, 41], seed=3)
    inputs = {name: rows.cuda() for name, rows in batch.items()}
    outputs = [
        FastEarlyExitEncoder(
            model, device="cuda", dtype=dtype, backend=gpu_backend, threshold=0.6, sync=sync
        )(**inputs)
        for sync in ("eager", "lagged")
    ]
    assert torch.equal(outputs[0].exit_layers, outputs[1].exit_layers)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    if dtype == torch.float32:
        expected = FastEarlyExitEncoder(model, backend="torch", threshold=0.6)(**batch)
        assert torch.equal(outputs[0].exit_layers.cpu(), expected.exit_layers)
        torch.testing.assert_close(outputs[0].logits.cpu(), expected.logits, atol=1e-3, rtol=1e-3)
