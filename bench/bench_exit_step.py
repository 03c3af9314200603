"""One exit step, B = 32 rows, H = 768, SST-2 lengths: the fused op beside its eager composition.

Both start from the pooler's product, end with the compacted batch, and write the same results. Half
of the rows leave.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from consistentee_ext.names import POLICY_INPUTS
from consistentee_ext.ops import load_ops
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

ROWS, HIDDEN, CLASSES, POLICY = 32, 768, 2, 32


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("policy_input", POLICY_INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def bench_exit_step(
    benchmark: BenchmarkFixture, dtype: torch.dtype, policy_input: str, backend: str
) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    lengths = torch.randint(5, 45, (ROWS,), generator=generator)  # a mean of 25, as in SST-2
    cu_seqlens = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
    hidden = normal(int(lengths.sum()), HIDDEN).to(dtype)
    batch = PackedBatch(hidden, cu_seqlens, torch.arange(ROWS))
    features = {"state": HIDDEN, "prediction": 5, "both": HIDDEN + 5}[policy_input]
    weights = HeadWeights(
        normal(CLASSES, HIDDEN) / HIDDEN**0.5,
        normal(CLASSES),
        normal(POLICY, features) / features**0.5,
        normal(POLICY),
        normal(POLICY),
        normal(1),
        policy_input,
    )
    pooled = normal(ROWS, HIDDEN).to(dtype)
    results = ExitResults.empty(ROWS, CLASSES)
    exit_step = load_ops(backend).exit_step
    decision = ExitDecision("policy", torch.ones(ROWS), layer=1, max_streak=11, last=True)
    exit_step(batch, pooled, weights, decision, results)
    medians = results.exit_scores.median().expand(ROWS)
    decision = decision._replace(thresholds=medians, last=False)
    benchmark.group = f"exit step, B = {ROWS}, H = {HIDDEN}, policy reads {policy_input}, {dtype}"
    with torch.inference_mode():
        stay = benchmark(exit_step, batch, pooled, weights, decision, results)
    benchmark.extra_info |= {
        "row": "fused C++ op" if backend == "cpu" else "eager PyTorch (reference.py)",
        "ours": backend == "cpu",
        "note": f"{len(stay.row_ids)} of {ROWS} rows stay",
    }
