"""The inference Linear against float64, with and without oneDNN."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from consistentee_ext import linear
from consistentee_ext.linear import Linear


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 19, 111])
@pytest.mark.parametrize("activation", [None, "gelu", "relu", "silu"])
def test_linear(
    monkeypatch: pytest.MonkeyPatch,
    onednn: bool,
    dtype: torch.dtype,
    rows: int,
    activation: str | None,
) -> None:
    if not onednn:
        monkeypatch.setattr(linear, "_onednn_available", lambda: False)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 99), torch.randn(65, 99) / 10, torch.randn(65)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    layer = Linear(weight, bias, activation)
    assert onednn or not layer.packed
    with torch.inference_mode():
        found = layer(x)
    exact = F.linear(x.double(), weight.double(), bias.double())
    eager = F.linear(x, weight, bias)
    if activation:
        exact, eager = (getattr(F, activation)(y) for y in (exact, eager))
    assert found.shape == (rows, 65)
    assert found.dtype == dtype
    if rows:
        error, eager_error = (found - exact).abs().max(), (eager - exact).abs().max()
        assert error <= 2 * eager_error + 1e-6
